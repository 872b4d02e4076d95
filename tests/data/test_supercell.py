import itertools

import numpy as np
import pytest
import torch

from pyg_dim.data import DenseSupercell, load_dataset
from pyg_dim.data.supercell import nearly_cubic


def build(cell, num_sites, max_sites=50):
    return nearly_cubic(torch.tensor(np.array(cell))[None], torch.tensor([num_sites]), max_sites)[0]


def grow_step_by_step(edges, num_sites, max_sites):
    """The rule as it is written: one more repetition of the shortest edge at a time."""
    repeats = np.ones(3, dtype=int)
    while True:
        longer = repeats.copy()
        longer[np.argmin(repeats * edges)] += 1
        if longer.prod() * num_sites > max_sites:
            return repeats
        repeats = longer


def test_known_supercells():
    # 50 sites / 2 = 25 images; equal edges are repeated in their order: 2x2x2, 3x2x2, 3x3x2, and 3x3x3 = 27 is too
    # many.
    assert build(4.0 * np.eye(3), 2).tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 2]]
    assert build(np.diag([3.0, 3.0, 12.0]), 5).tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 1]]


@pytest.mark.parametrize("max_sites", [1, 7, 50, 500])
def test_repetitions_are_those_of_the_rule_as_written(max_sites, random_crystal):
    rng = np.random.default_rng(1)
    for num_sites in (1, 2, 5, 13, 50):
        _, _, cell = random_crystal(rng, num_sites)
        supercell = build(cell, num_sites, max_sites).numpy()
        third = np.linalg.norm(cell[2])
        area = np.linalg.norm(np.cross(cell[1], cell[2]))
        edges = np.array([abs(np.linalg.det(cell)) / area, area / third, third])
        assert np.diag(supercell).tolist() == grow_step_by_step(edges, num_sites, max_sites).tolist()
        assert np.allclose(supercell, np.triu(supercell))
        if num_sites <= max_sites:
            assert num_sites * np.diag(supercell).prod() <= max_sites


def test_a_large_crystal_is_its_own_supercell():
    assert build(np.diag([4.0, 9.0, 9.0]), 60).diagonal().tolist() == [1, 1, 1]


def test_vectors_are_sheared_towards_a_right_angle(random_crystal):
    rng = np.random.default_rng(2)
    for _ in range(20):
        _, _, cell = random_crystal(rng, 2, spread=0.8)
        supercell = build(cell, 2).numpy() @ cell
        # In the frame where the third vector is an axis, what is left off that axis is at most half of the primitive
        # edge.
        along = supercell[:2] @ cell[2] / np.linalg.norm(cell[2])
        assert (np.abs(along) <= (0.5 + 1e-4) * np.linalg.norm(cell[2])).all()


def test_batched_equals_one_by_one(random_crystal):
    rng = np.random.default_rng(3)
    sizes = [1, 2, 3, 8, 20, 50]
    cells = [random_crystal(rng, n)[2] for n in sizes]
    together = nearly_cubic(torch.tensor(np.stack(cells)), torch.tensor(sizes), 50)
    for row, (cell, n) in enumerate(zip(cells, sizes, strict=True)):
        assert together[row].tolist() == build(cell, n).tolist()


def test_rotation_chooses_the_same_supercell(symmetric_crystal, random_rotation):
    rng = np.random.default_rng(4)
    _, _, cell = symmetric_crystal
    for num_sites in (1, 2, 3, 7):
        expected = build(cell, num_sites).tolist()
        for _ in range(25):
            assert build(cell @ random_rotation(rng), num_sites).tolist() == expected
        # Single precision of the input is noise as well.
        assert build((cell @ random_rotation(rng)).astype(np.float32), num_sites).tolist() == expected


def check_distances(dataset, rows, tolerance):
    """Each pair of the dense graph against pymatgen's distances in the same supercell; True for each skewed cell."""
    from pymatgen.core import Lattice, Structure

    batch = DenseSupercell()(dataset.gather(rows))
    supercells = nearly_cubic(batch.cell, batch.ptr.diff(), 50)
    width = torch.bincount(batch.edge_index[1]).tolist()
    lengths = batch.edge_dist.double().split(width)
    beyond = 0
    for crystal in range(batch.num_graphs):
        sites = slice(int(batch.ptr[crystal]), int(batch.ptr[crystal + 1]))
        structure = Structure(
            Lattice(batch.cell[crystal].double().numpy()),
            batch.z[sites].tolist(),
            batch.pos[sites].double().numpy(),
            coords_are_cartesian=True,
        )
        structure.make_supercell(supercells[crystal].tolist(), to_unit_cell=False)
        images = int(supercells[crystal].diagonal().prod())
        reference = structure.distance_matrix[::images].reshape(len(lengths[sites]), -1, images)
        # Columns of one source site are its images, here and there in any order.
        ours = torch.stack(lengths[sites]).view(reference.shape).sort(dim=2).values
        np.testing.assert_allclose(ours, np.sort(reference, axis=2), rtol=0, atol=tolerance)
        beyond += naive_rule_fails(structure, reference, images)
    return beyond


def naive_rule_fails(structure, reference, images):
    """Whether the nearest of the 27 images around a wrapped difference is not always the nearest image."""
    shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    difference = structure.frac_coords[None] - structure.frac_coords[::images, None]
    wrapped = difference - np.round(difference)
    naive = np.linalg.norm((wrapped[:, :, None] + shifts) @ structure.lattice.matrix, axis=3).min(2)
    return bool((naive.reshape(reference.shape) > reference + 1e-6).any())


def test_distances_of_real_cells_are_those_of_pymatgen(shared):
    dataset = load_dataset(shared("data/mp36k.parquet"))
    rows = np.random.default_rng(0).choice(len(dataset), 500, replace=False)
    check_distances(dataset, torch.from_numpy(np.sort(rows)), 1e-5)


def test_distances_of_very_skewed_cells_are_those_of_pymatgen(make_dataset):
    """Cells written with long, nearly parallel vectors, too large to be repeated: the supercell is as skewed."""
    rng = np.random.default_rng(0)
    crystals = []
    for shear in (
        [[1, 0, 0], [6, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [7, 1, 0], [-5, 9, 1]],
        [[1, 4, 0], [0, 1, 0], [3, 9, 1]],
    ):
        cell = np.array(shear) @ np.diag([6.0, 7.1, 6.5])
        crystals.append((rng.choice([3, 8, 26], 26), rng.uniform(0, 1, (26, 3)) @ cell, cell))
    assert check_distances(make_dataset(crystals), torch.arange(3), 1e-9) == 3
