import tracemalloc

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.primitive import may_be_reduced, primitive_cell
from pyg_dim.data.structures import sites_of

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_conventional_cell_is_reduced_without_rotation():
    z, pos, cell = primitive_cell(sites_of(SALT))
    assert sorted(z) == [11, 17]
    assert abs(np.linalg.det(cell)) == pytest.approx(5.6**3 / 4)
    # The reduced vectors are lattice vectors of the original crystal, and the sites lie where they were.
    np.testing.assert_allclose(cell / 2.8, np.round(cell / 2.8), atol=1e-9)
    np.testing.assert_allclose(pos / 2.8, np.round(pos / 2.8), atol=1e-9)


def test_primitive_distorted_and_broken_cells_stay_as_they_are():
    primitive = sites_of(SALT.get_primitive_structure())
    distorted = SALT.copy()
    distorted.perturb(0.05)
    coinciding = (np.array([1, 1]), np.zeros((2, 3)), 3 * np.eye(3))
    nowhere = (np.array([1, 1]), np.full((2, 3), np.nan), 3 * np.eye(3))
    flat = (np.array([1, 1]), np.zeros((2, 3)), np.ones((3, 3)))
    for sites in (primitive, sites_of(distorted), coinciding, nowhere, flat):
        assert primitive_cell(sites) is sites


def lay_side_by_side(crystals):
    z, pos, cell = zip(*crystals, strict=True)
    return np.concatenate(z), np.concatenate(pos), np.stack(cell), np.array([len(numbers) for numbers in z])


def supercell_with_disorder(rng, random_crystal, shift):
    """A random crystal repeated along one axis, its copies displaced at random."""
    z, pos, cell = random_crystal(rng, int(rng.integers(1, 6)))
    times = int(rng.integers(1, 4))
    copies = np.concatenate([pos + k * cell[0] for k in range(times)])
    larger = cell * np.array([[times], [1], [1]])
    wrapped = (copies + rng.normal(0, shift, copies.shape)) @ np.linalg.inv(larger)
    order = rng.permutation(len(copies))
    return np.tile(z, times)[order], (wrapped[order] % 1) @ larger, larger


@pytest.mark.parametrize("pairs", [7, 200_000])
@pytest.mark.parametrize("shift", [0, 2e-4, 1e-3, 1e-2])
def test_the_search_without_spglib_misses_no_cell_that_it_reduces(random_crystal, shift, pairs, monkeypatch):
    monkeypatch.setattr("pyg_dim.data.primitive._PAIRS", pairs)
    rng = np.random.default_rng(0)
    crystals = [supercell_with_disorder(rng, random_crystal, shift) for _ in range(60)]
    may = may_be_reduced(*lay_side_by_side(crystals))
    reduced = np.array([primitive_cell(crystal) is not crystal for crystal in crystals])
    assert not (reduced & ~may).any()
    if shift == 0:
        assert 20 < reduced.sum() < 55
        np.testing.assert_array_equal(may, reduced)
    if shift == 1e-2:
        assert not may.any()


def test_the_search_leaves_primitive_cells_of_many_equal_sites_to_themselves():
    # Diamond: the second site of the basis is no translation of the first, but inversion maps it.
    diamond = sites_of(Structure(Lattice.rhombohedral(2.5, 60), ["C", "C"], [[0, 0, 0], [0.25, 0.25, 0.25]]))
    # Perovskite: the three oxygens have no translations, but are equal by rotation.
    perovskite = sites_of(
        Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0] * 3, [0.5] * 3, [0, 0.5, 0.5]])
    )
    assert not may_be_reduced(*lay_side_by_side([diamond, perovskite, diamond])).any()
    assert may_be_reduced(*lay_side_by_side([diamond, sites_of(SALT), perovskite])).tolist() == [False, True, False]


def test_a_translation_must_repeat_every_site():
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0.5], [0.25, 0.1, 0], [0.75, 0.6, 0.5]]
    repeated = sites_of(Structure(Lattice.cubic(6), ["Na", "Na", "Cl", "Cl", "Br", "Br"], places))
    for site in range(6):
        moved = repeated[1].copy()
        moved[site, 1] += 0.1
        broken = repeated[0], moved, repeated[2]
        assert may_be_reduced(*lay_side_by_side([broken, repeated])).tolist() == [False, True]


def test_large_cells_take_little_memory():
    places = 3 * np.stack(np.meshgrid(*[np.arange(9.0)] * 3), axis=-1).reshape(-1, 3)
    broken = places.copy()
    broken[-1] += 0.5
    crystals = [(np.full(729, 29), pos, 27 * np.eye(3)) for pos in (places, broken, broken, broken)]
    side_by_side = lay_side_by_side(crystals)
    tracemalloc.start()
    found = may_be_reduced(*side_by_side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == [True, False, False, False]
    # All translations of all crystals with all sites would be 300 megabytes.
    assert peak < 60e6


def test_only_the_last_candidate_is_a_translation():
    # On a grid of twelfths, each of the eleven other sites might be twelve steps of a translation away.
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(1, 6), np.arange(1, 12), np.arange(1, 12)), axis=-1).reshape(-1, 3) / 12
    half = np.concatenate([np.zeros((1, 3)), rng.choice(grid, 5, replace=False)])
    both = np.concatenate([half, half[::-1] + np.array([0.5, 0, 0])])
    cell = 12 * np.eye(3)
    crystal = (np.full(12, 29), both @ cell, cell)
    assert len(primitive_cell(crystal)[0]) == 6
    assert may_be_reduced(*lay_side_by_side([crystal, crystal])).all()


def test_the_search_passes_over_cells_without_distances():
    nowhere = (np.array([1, 1]), np.full((2, 3), np.nan), 3 * np.eye(3))
    flat = (np.array([1, 1]), np.zeros((2, 3)), np.ones((3, 3)))
    empty = (np.zeros(0, dtype=np.int64), np.zeros((0, 3)), 3 * np.eye(3))
    cells = [nowhere, flat, empty, sites_of(SALT)]
    assert may_be_reduced(*lay_side_by_side(cells)).tolist() == [False, False, False, True]


def test_the_tolerance_decides():
    crystal = SALT.copy()
    crystal.translate_sites([0], [0.001, 0, 0])
    sites = sites_of(crystal)
    assert len(primitive_cell(sites)[0]) == 8
    assert len(primitive_cell(sites, symprec=0.05)[0]) == 2
    assert not may_be_reduced(*lay_side_by_side([sites])).any()
    assert may_be_reduced(*lay_side_by_side([sites]), symprec=0.05).all()
