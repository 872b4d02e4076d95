import numpy as np
import pytest
import torch

from pyg_dim.data import neighbors
from pyg_dim.data.neighbors import nearest_neighbors, neighbors_within

SHEAR = np.array([[1.0, 0, 0], [9, 1, 0], [-7, 12, 1]])
CELLS = {
    "cubic": 4.0 * np.eye(3),
    "fcc": 2.1 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    "skewed": SHEAR @ np.diag([3.5, 4.0, 4.5]),
    "very skewed": np.array([[1.0, 0, 0], [35, 1, 0], [-27, 51, 1]]) @ np.diag([4.0, 4.2, 3.9]),
    "flat": np.diag([14.0, 15.0, 1.6]) + 0.2,
    "long": np.array([[2.3, 0.4, 0], [-0.3, 2.6, 0.1], [0.5, 0.2, 31.0]]),
    "tiny": np.array([[1.1, 0.1, 0], [0, 1.2, 0.2], [0.3, 0, 1.0]]),
    "left-handed": np.array([[0.0, 4, 0.3], [5, 0.2, 0], [0.1, 0, 6]]),
}


def packed(crystals):
    """pos, cell and ptr of (positions, cell) pairs."""
    count = torch.tensor([0] + [len(pos) for pos, _ in crystals])
    pos = torch.from_numpy(np.concatenate([pos for pos, _ in crystals]))
    return pos, torch.from_numpy(np.stack([cell for _, cell in crystals])), count.cumsum(0)


def listed(found):
    """(target, source, image, distance) rows in an order that does not depend on ties."""
    keys = torch.cat([found.target[:, None], found.source[:, None], found.shift], dim=1).tolist()
    return sorted(zip(map(tuple, keys), found.distance.tolist(), strict=True))


def reference(pos, cell, ptr, cutoff):
    from pymatgen.core import Lattice, Structure

    rows = []
    for crystal, matrix in enumerate(cell.numpy()):
        first, end = int(ptr[crystal]), int(ptr[crystal + 1])
        structure = Structure(
            Lattice(matrix),
            ["H"] * (end - first),
            pos[first:end].numpy(),
            coords_are_cartesian=True,
            to_unit_cell=False,
        )
        centre, point, image, length = structure.get_neighbor_list(cutoff)
        rows += [
            ((int(i) + first, int(j) + first, *map(round, n)), float(d))
            for i, j, n, d in zip(centre, point, image.tolist(), length, strict=True)
        ]
    return sorted(rows)


def first(found, k, num_sites):
    """The first k rows of every target."""
    return found[(neighbors.target_places(found.target, num_sites) < k).nonzero()[:, 0]]


def agree(ours, theirs):
    assert [key for key, _ in ours] == [key for key, _ in theirs]
    np.testing.assert_allclose([d for _, d in ours], [d for _, d in theirs], rtol=0, atol=1e-9)


@pytest.fixture
def crystals():
    """Cells of every shape, with sites inside and outside of them."""
    rng = np.random.default_rng(3)
    return packed(
        [
            (rng.uniform(-2, 3, (n, 3)) @ cell, cell)
            for n, cell in zip((1, 2, 5, 3, 8, 2, 1, 6), CELLS.values(), strict=True)
        ]
    )


@pytest.mark.parametrize("cutoff", [0.7, 3.1, 6.3])
def test_neighbours_are_those_of_pymatgen(crystals, cutoff):
    agree(listed(neighbors_within(*crystals, cutoff)), reference(*crystals, cutoff))


def test_random_crystals_are_those_of_pymatgen(random_crystal):
    rng = np.random.default_rng(8)
    crystals = packed([random_crystal(rng, n, spread)[1:] for n in (1, 2, 3, 7, 12) for spread in (0.1, 0.4, 1.5)])
    found = neighbors_within(*crystals, 5.2)
    agree(listed(found), reference(*crystals, 5.2))
    assert found.target.numel() > 500


def test_shifts_lead_to_the_neighbours(crystals):
    pos, cell, ptr = crystals
    found = neighbors_within(pos, cell, ptr, 5.0)
    crystal = torch.repeat_interleave(ptr.diff())[found.target]
    vector = pos[found.source] + (found.shift.double()[:, None] @ cell[crystal])[:, 0] - pos[found.target]
    torch.testing.assert_close(vector.norm(dim=1), found.distance, rtol=0, atol=1e-9)


def test_rows_are_sorted_by_target_then_distance(crystals):
    found = neighbors_within(*crystals, 5.0)
    step, same = found.target.diff(), found.target.diff() == 0
    assert (step >= 0).all()
    assert (found.distance.diff()[same] >= -neighbors.TIE).all()
    # Neighbours at equal distance come in the order of their sites, then of their images.
    tie = same & (found.distance.diff().abs() < 1e-10)
    assert tie.sum() > 100
    assert (found.source.diff()[tie] >= 0).all()
    keys = [(j, *n) for j, n in zip(found.source.tolist(), found.shift.tolist(), strict=True)]
    assert all(keys[row] < keys[row + 1] for row in tie.nonzero()[:, 0].tolist())


def test_equal_neighbours_are_chosen_by_species_then_index_then_image(random_rotation):
    """The cubic cell of fcc with one site of another species; positions in single precision."""
    cell = 4.1 * np.eye(3)
    pos = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) @ cell
    z = torch.tensor([29, 79, 29, 13])
    rng = np.random.default_rng(0)
    chosen = set()
    for rotation in (random_rotation(rng) for _ in range(20)):
        arrays = packed([((pos + rng.normal(size=3)) @ rotation, cell @ rotation)])
        found = nearest_neighbors(arrays[0].float(), arrays[1].float(), arrays[2], 6, 7.0, z)
        assert z[found.source].tolist() == [13] * 4 + [29] * 2 + [13] * 4 + [29] * 2 + [13] * 4 + [29] * 2 + [29] * 6
        assert found.source[18:].tolist() == [0, 0, 0, 0, 2, 2]
        chosen.add(str(found.shift.tolist()))
    assert len(chosen) == 1


def test_whole_shells_are_kept_on_request(symmetric_crystal):
    z, pos, cell = symmetric_crystal
    crystals = packed([(pos, cell)])
    every = neighbors_within(*crystals, 9.0, torch.from_numpy(z))
    for k in range(1, 30):
        found = nearest_neighbors(*crystals, k, 7.0, torch.from_numpy(z), ties=True)
        for site in range(2):
            length = every.distance[every.target == site]
            expected = length[(length < length[k - 1] + 1e-7) & (length < 7.0 + 1e-7)]
            torch.testing.assert_close(found.distance[found.target == site], expected, rtol=0, atol=1e-9)


def test_sites_that_nearly_touch_are_neighbours():
    found = neighbors_within(*packed([(np.array([[0.0, 0, 0], [0, 0, 1e-3]]), 9 * np.eye(3))]), 2.0)
    assert found.source.tolist() == [1, 0]
    torch.testing.assert_close(found.distance, torch.full((2,), 1e-3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_sites_far_outside_of_the_cell(crystals):
    pos, cell, ptr = crystals
    rng = np.random.default_rng(0)
    crystal = torch.repeat_interleave(ptr.diff())
    image = torch.from_numpy(rng.integers(-40, 41, (len(pos), 3))).double()
    far = pos + (image[:, None] @ cell[crystal])[:, 0]
    before, after = neighbors_within(pos, cell, ptr, 4.0), neighbors_within(far, cell, ptr, 4.0)
    after.shift.add_((image[after.source] - image[after.target]).long())
    assert [key for key, _ in listed(before)] == [key for key, _ in listed(after)]


def test_neighbours_are_those_of_vesin(crystals):
    vesin = pytest.importorskip("vesin", reason="needs vesin: pip install -e '.[test]'")
    pos, cell, ptr = crystals
    rows = []
    for crystal, matrix in enumerate(cell.numpy()):
        first, end = int(ptr[crystal]), int(ptr[crystal + 1])
        i, j, image, length = vesin.NeighborList(cutoff=4.4, full_list=True).compute(
            points=pos[first:end].numpy(), box=matrix, periodic=True, quantities="ijSd"
        )
        rows += [
            ((int(a) + first, int(b) + first, *map(int, n)), float(d))
            for a, b, n, d in zip(i, j, image, length, strict=True)
        ]
    agree(listed(neighbors_within(*crystals, 4.4)), sorted(rows))


@pytest.mark.parametrize("limit", [1, 300, 20_000])
def test_looking_at_few_candidates_at_a_time_changes_nothing(crystals, monkeypatch, limit):
    whole = neighbors_within(*crystals, 4.0), nearest_neighbors(*crystals, 7, 4.0)
    monkeypatch.setattr(neighbors, "_CANDIDATES", limit)
    parts = neighbors_within(*crystals, 4.0), nearest_neighbors(*crystals, 7, 4.0)
    for a, b in zip(whole, parts, strict=True):
        assert all(getattr(a, name).equal(getattr(b, name)) for name in ("source", "target", "shift", "distance"))


@pytest.mark.parametrize("first_count", [1e-4, 1.2, 1e4])
@pytest.mark.parametrize(("k", "cutoff"), [(1, 8.0), (12, 8.0), (12, 3.4), (40, 6.0)])
def test_the_nearest_are_the_first_of_all_within_the_cutoff(crystals, monkeypatch, first_count, k, cutoff):
    every = neighbors_within(*crystals, cutoff)
    expected = first(every, k, crystals[0].size(0))
    monkeypatch.setattr(neighbors, "_FIRST_COUNT", first_count)
    found = nearest_neighbors(*crystals, k, cutoff)
    assert all(
        getattr(found, name).equal(getattr(expected, name)) for name in ("source", "target", "shift", "distance")
    )


def test_the_nearest_of_symmetric_crystals(symmetric_crystal):
    """Where the k-th neighbour is one of many that are equally far."""
    _, pos, cell = symmetric_crystal
    crystals = packed([(pos, cell)])
    every = neighbors_within(*crystals, 7.0)
    for k in range(1, 30):
        found = nearest_neighbors(*crystals, k, 7.0)
        expected = first(every, k, 2)
        assert found.source.equal(expected.source)
        assert found.shift.equal(expected.shift)


def test_rounding_does_not_choose_between_equal_neighbours(random_rotation):
    """The cubic cell of fcc: twelve equal neighbours, four images of each of the other three sites."""
    cell = 4.1 * np.eye(3)
    pos = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) @ cell
    rng = np.random.default_rng(0)
    for rotation in (random_rotation(rng) for _ in range(20)):
        found = nearest_neighbors(*packed([((pos + rng.normal(size=3)) @ rotation, cell @ rotation)]), 6, 7.0)
        assert found.source.tolist() == [1] * 4 + [2] * 2 + [0] * 4 + [2] * 2 + [0] * 4 + [1] * 2 + [0] * 4 + [1] * 2


def test_a_shell_at_the_cutoff_is_whole(random_rotation):
    """Points of the simple cubic lattice with a squared length up to 4: 6 + 12 + 8 + 6."""
    rng = np.random.default_rng(0)
    cells = [4 * np.eye(3) @ random_rotation(rng) for _ in range(20)]
    found = neighbors_within(*packed([(rng.normal(size=(1, 3)), SHEAR.round() @ cell) for cell in cells]), 8.0)
    assert torch.bincount(found.target).tolist() == [32] * 20


def test_images_of_a_site_are_its_neighbours_and_it_is_not():
    found = neighbors_within(*packed([(np.zeros((1, 3)), 3 * np.eye(3))]), 3.5)
    assert found.source.tolist() == [0] * 6
    assert found.shift.abs().sum(1).tolist() == [1] * 6


def test_sites_far_apart_have_no_neighbours():
    lonely = (np.zeros((1, 3)), 50 * np.eye(3))
    pair = (np.array([[0.0, 0, 0], [0, 0, 1.5]]), 50 * np.eye(3))
    for search in (lambda *c: neighbors_within(*c, 8.0), lambda *c: nearest_neighbors(*c, 12, 8.0)):
        found = search(*packed([lonely]))
        assert found.source.shape == found.distance.shape == (0,)
        assert found.shift.shape == (0, 3)
        assert search(*packed([lonely, pair, lonely])).target.tolist() == [1, 2]


def test_batched_equals_one_by_one(crystals):
    pos, cell, ptr = crystals
    together = nearest_neighbors(pos, cell, ptr, 9, 6.0)
    for crystal in range(len(cell)):
        first, end = int(ptr[crystal]), int(ptr[crystal + 1])
        alone = nearest_neighbors(pos[first:end], cell[crystal : crystal + 1], torch.tensor([0, end - first]), 9, 6.0)
        mine = (together.target >= first) & (together.target < end)
        assert together.source[mine].equal(alone.source + first)
        assert together.shift[mine].equal(alone.shift)
        torch.testing.assert_close(together.distance[mine], alone.distance, rtol=0, atol=1e-12)


def test_single_precision_positions_are_searched_in_double(crystals):
    pos, cell, ptr = crystals
    found = neighbors_within(pos.float(), cell.float(), ptr, 4.0)
    expected = neighbors_within(pos.float().double(), cell.float().double(), ptr, 4.0)
    assert found.distance.dtype == torch.float64
    assert found.distance.equal(expected.distance)


@pytest.mark.parametrize("ties", [False, True])
def test_a_shell_that_the_first_sphere_cuts_is_found_whole(monkeypatch, ties):
    """Simple cubic, its six nearest neighbours apart by a little: the first sphere holds but four of them."""
    cell = np.diag([3.0, 3.000004, 3.000008])
    cell[2, 0] = 1e-5
    monkeypatch.setattr(neighbors, "_FIRST_COUNT", (3.000004 - 0.9e-5) ** 3 / (0.75 / np.pi * 3 * np.linalg.det(cell)))
    found = nearest_neighbors(*packed([(np.zeros((1, 3)), cell)]), 3, 8.0, ties=ties)
    shifts = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert found.shift.tolist() == (shifts if ties else shifts[:3])
