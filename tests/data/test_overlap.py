import numpy as np
import pytest
from pymatgen.core import Lattice

from pyg_dim.data.overlap import MIN_DISTANCE, overlap, overlaps


def shortest(pos, cell):
    """Shortest periodic distance by pymatgen, over the sites and their own images."""
    lattice = Lattice(cell)
    fractional = lattice.get_fractional_coords(pos)
    distances = [
        float(distance)
        for k, place in enumerate(fractional)
        for _, distance, other, image in lattice.get_points_in_sphere(fractional, pos[k], 1.0, zip_results=True)
        if other != k or np.abs(fractional[other] + image - place).max() > 1e-6
    ]
    return min(distances, default=np.inf)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_shortest_periodic_distance(seed):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(0.8, 4, 3)) + rng.normal(0, 0.4, (3, 3))
    # Positions outside of the cell, and another basis of the same lattice.
    pos = rng.uniform(-2, 2, (int(rng.integers(1, 9)), 3)) @ cell
    other = np.array([[1, int(rng.integers(-3, 4)), 2], [0, 1, -2], [0, 0, 1]]) @ cell
    expected = shortest(pos, cell)
    for basis in (cell, other, -cell):
        found = overlap(pos, basis)
        if expected < MIN_DISTANCE:
            assert found == pytest.approx(expected, abs=1e-8)
        else:
            assert found is None


def test_the_cases_of_the_test_above_are_of_both_kinds():
    rng = np.random.default_rng(0)
    cell = 3 * np.eye(3)
    found = [overlap(rng.uniform(0, 3, (5, 3)), cell) for _ in range(40)]
    assert 5 < sum(distance is None for distance in found) < 35


def test_the_limit_itself_is_no_overlap():
    pos = np.array([[0.0, 0, 0], [0, 0, 0.5]])
    assert overlap(pos, 4 * np.eye(3)) is None
    assert overlap(pos * 0.999, 4 * np.eye(3)) == pytest.approx(0.4995)


def test_coinciding_sites_across_the_boundary():
    assert overlap(np.array([[0.0, 0, 0], [4, 4, -4]]), 4 * np.eye(3)) == 0
    assert overlap(np.array([[1e-17, 0, 0], [-1e-17, 0, 0]]), 4 * np.eye(3)) == pytest.approx(0, abs=1e-12)


def test_a_site_can_overlap_with_its_own_image():
    assert overlap(np.zeros((1, 3)), np.diag([0.4, 5, 5])) == pytest.approx(0.4)
    # The short vector is not among those given.
    assert overlap(np.zeros((1, 3)), np.array([[3.0, 0, 0], [3.3, 0.2, 0], [0, 0, 5]])) == pytest.approx(0.13**0.5)


def test_broken_cells_are_left_to_the_other_checks():
    pos = np.zeros((2, 3))
    for cell in (np.ones((3, 3)), np.zeros((3, 3)), np.full((3, 3), np.nan)):
        assert overlap(pos, cell) is None
    assert overlap(np.full((2, 3), np.inf), 4 * np.eye(3)) is None
    assert overlap(np.zeros((0, 3)), 4 * np.eye(3)) is None


def test_large_and_elongated_cells_take_no_time():
    rng = np.random.default_rng(0)
    for cell in (np.diag([1e6, 1e6, 1e6]), np.diag([1e7, 3, 3])):
        assert overlap(rng.uniform(0, 1, (30, 3)) @ cell, cell) is None


def one_by_one(crystals):
    found = [overlap(pos, cell) for pos, cell in crystals]
    return np.array([np.inf if distance is None else distance for distance in found])


def all_at_once(crystals):
    pos, cell = zip(*crystals, strict=True)
    return overlaps(np.concatenate(pos), np.stack(cell), np.array([len(p) for p in pos]))


def test_many_crystals_at_once_are_as_one_by_one(monkeypatch):
    rng = np.random.default_rng(1)
    crystals = []
    for k in range(300):
        # Wide and narrow cells, few and many sites, skewed bases and positions outside of the cell.
        cell = np.diag(rng.uniform(0.6 if k % 3 else 2, 6, 3)) + rng.normal(0, 0.5, (3, 3))
        basis = np.array([[1, int(rng.integers(-3, 4)), 2], [0, 1, -2], [0, 0, 1]]) @ cell if k % 2 else cell
        crystals.append((rng.uniform(-2, 2, (int(rng.integers(0, 12)), 3)) @ cell, basis))
    crystals += [
        (np.zeros((2, 3)), np.ones((3, 3))),
        (np.full((2, 3), np.nan), 4 * np.eye(3)),
        (np.zeros((1, 3)), np.full((3, 3), np.inf)),
        (np.zeros((2, 3)), 4 * np.eye(3)),
        (np.array([[0.0, 0, 0], [0, 0, 0.5]]), 4 * np.eye(3)),
        (np.array([[0.0, 0, 0], [4, 3.6, -4]]), 4 * np.eye(3)),
    ]
    expected = one_by_one(crystals)
    assert 40 < np.isfinite(expected).sum() < 250
    np.testing.assert_allclose(all_at_once(crystals), expected, atol=1e-9)
    # In several portions, and large crystals on their own.
    monkeypatch.setattr("pyg_dim.data.overlap._PAIRS", 60)
    np.testing.assert_allclose(all_at_once(crystals), expected, atol=1e-9)


def test_no_crystals_at_all():
    assert len(overlaps(np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros(0, dtype=int))) == 0
