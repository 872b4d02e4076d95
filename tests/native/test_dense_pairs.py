"""The kernel of the dense graph against the plain path, which tests/data/ compares with other programs."""

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install -e '.[test]'")
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.graphs import DenseSupercell, _plain_pairs
from pyg_dim.data.minimum_image import GAIN
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.data.supercell import nearly_cubic
from pyg_dim.native import fault
from pyg_dim.native.dense_pairs import dense_pairs

pytestmark = pytest.mark.skipif(fault() is not None, reason=str(fault()))
NAMES = ["Cu", "Si", "NaCl", "CaF2", "CaTiO3", "TiO2", "triclinic"]


def batch_from(crystals):
    """Batch of (positions, cell) pairs."""
    counts = torch.tensor([len(pos) for pos, _ in crystals])
    return CrystalBatch(
        z=torch.ones(int(counts.sum()), dtype=torch.long),
        pos=torch.from_numpy(np.concatenate([pos for pos, _ in crystals])),
        cell=torch.from_numpy(np.stack([cell for _, cell in crystals])),
        ptr=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
    )


def kernel_pairs(batch, max_sites=50):
    return dense_pairs(batch.pos, batch.cell, batch.ptr, nearly_cubic(batch.cell, batch.ptr.diff(), max_sites), GAIN)


def assert_same(batch, max_sites=50, within=1e-12):
    """The same pairs and lengths; other images only where they are equally near."""
    supercell = nearly_cubic(batch.cell, batch.ptr.diff(), max_sites)
    index, shift, length = dense_pairs(batch.pos, batch.cell, batch.ptr, supercell, GAIN)
    expected_index, expected_shift, expected = _plain_pairs(batch.pos, batch.cell, batch.ptr, supercell)
    assert index.equal(expected_index)
    assert shift.dtype == torch.int64
    # An image that gains less than GAIN counts as no nearer.
    same = (shift == expected_shift).all(1)
    torch.testing.assert_close(length[same], expected[same], rtol=0, atol=within)
    torch.testing.assert_close(length, expected, rtol=0, atol=10 * GAIN)
    pos, cell = batch.pos.double(), batch.cell.double()
    crystal = torch.repeat_interleave(batch.ptr.diff())[index[1]]
    way = pos[index[0]] - pos[index[1]]
    found = (way + (shift.double().unsqueeze(1) @ cell[crystal]).squeeze(1)).norm(dim=1)
    torch.testing.assert_close(found, length, rtol=0, atol=within)
    # Both are the same site of the supercell.
    apart = ((shift - expected_shift).double().unsqueeze(1) @ torch.linalg.inv(supercell.double())[crystal]).squeeze(1)
    torch.testing.assert_close(apart, apart.round(), rtol=0, atol=1e-9)
    own = (index[0] == index[1]) & (shift == 0).all(1)
    assert own.sum() == batch.pos.size(0)
    assert (length[own] == 0).all()
    return shift, expected_shift


@pytest.mark.parametrize("max_sites", [1, 7, 50, 200])
def test_known_crystals(batch_of, max_sites):
    assert_same(batch_of(NAMES), max_sites)


def test_images_are_the_same_where_one_is_nearest(batch_of):
    shift, expected = assert_same(batch_of(["triclinic"]), max_sites=1)
    assert shift.equal(expected)


def test_skewed_cells_of_all_sizes():
    """Long, nearly parallel vectors; sites far outside of the cell; rows that fill vectors and that do not."""
    rng = np.random.default_rng(0)
    crystals = []
    for sites in (*range(1, 18), 26, 60, 73):
        cell = np.diag(rng.uniform(3, 8, 3)) * max(1, sites / 8) ** (1 / 3)
        for _ in range(5):
            i, j = rng.choice(3, 2, replace=False)
            cell[i] += rng.integers(-2, 3) * cell[j]
        crystals.append((rng.uniform(-2, 2, (sites, 3)) @ cell, cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]))
    assert_same(batch_from(crystals), within=1e-11)
    assert_same(batch_from(crystals), max_sites=1, within=1e-11)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 1, 0]])
def test_each_step_of_the_reduction_is_needed(order):
    """One vector is nearly parallel to another; the third is longer than both, or shorter."""
    rng = np.random.default_rng(2)
    flat = np.array([[5.0, 0, 0], [36, 5, 0], [0, 0, 1]])
    cells = [(flat * [1, 1, height])[order] for height in (4.0, 60.0)]
    assert_same(batch_from([(rng.uniform(0, 1, (9, 3)) @ cell, cell) for cell in cells]), max_sites=1, within=1e-11)


def test_decorated_prototypes():
    dataset = decorated_prototypes(40, seed=0)
    assert_same(dataset.gather(torch.arange(len(dataset))))


numbers = st.floats(-1, 1, allow_subnormal=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_cell(data):
    crystals = []
    for _ in range(data.draw(st.integers(1, 3))):
        cell = 6 * np.array(data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=3, max_size=3)))
        assume(abs(np.linalg.det(cell)) > 5)
        sites = data.draw(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6, unique=True))
        crystals.append((np.array(sites) @ cell, cell))
    batch = batch_from(crystals)
    index, _, length = kernel_pairs(batch)
    assume((length[index[0] != index[1]] > 1e-3).all())  # sites on top of each other
    assert_same(batch, within=1e-11)


def test_there_and_back_are_as_long_to_the_last_bit(random_positions):
    index, shift, length = kernel_pairs(random_positions)
    pairs = torch.cat([index.T, shift], dim=1).tolist()
    known = dict(zip(map(tuple, pairs), length.tolist(), strict=True))
    back = [known.get((i, j, -a, -b, -c)) for j, i, a, b, c in pairs]
    # Where two images are equally near, the way back may be that over the other one.
    assert back.count(None) < len(back) / 10
    assert all(there == b for there, b in zip(length.tolist(), back, strict=True) if b is not None)


@pytest.fixture
def random_positions():
    rng = np.random.default_rng(1)
    cells = [np.diag(rng.uniform(4, 7, 3)) + rng.normal(0, 1, (3, 3)) for _ in range(6)]
    return batch_from([(rng.uniform(0, 1, (4 + k, 3)) @ cell, cell) for k, cell in enumerate(cells)])


def test_single_precision_is_rounded_once(random_positions):
    index, shift, length = kernel_pairs(random_positions.apply(lambda t: t.float() if t.is_floating_point() else t))
    assert length.dtype == torch.float64
    batch = DenseSupercell()(random_positions)
    assert batch.edge_dist.dtype == torch.float32
    assert batch.edge_dist.equal(length.float())
    assert batch.edge_index.equal(index)
    assert batch.edge_shift.equal(shift)


def test_views_are_read_as_what_they_show(random_positions):
    expected = kernel_pairs(random_positions)
    random_positions.pos = random_positions.pos.T.contiguous().T
    random_positions.cell = random_positions.cell.transpose(1, 2).contiguous().transpose(1, 2)
    assert all(one.equal(other) for one, other in zip(kernel_pairs(random_positions), expected, strict=True))


def test_gradients_go_the_plain_path(random_positions):
    random_positions.pos.requires_grad_()
    assert DenseSupercell()(random_positions).edge_dist.requires_grad
    random_positions.pos.requires_grad_(False)
    random_positions.cell.requires_grad_()
    assert DenseSupercell()(random_positions).edge_dist.requires_grad


@pytest.mark.parametrize("ptr", [[0, 4, 9], [0, 4, 9, 15, 22, 30, 40], [1, 4, 9, 15, 22, 30, 39]], ids=str)
def test_sites_that_are_not_there_are_not_read(random_positions, ptr):
    supercell = torch.eye(3, dtype=torch.long).expand(6, 3, 3)
    with pytest.raises(ValueError, match="does not divide 39 sites between 6 cells"):
        dense_pairs(random_positions.pos, random_positions.cell, torch.tensor(ptr), supercell, GAIN)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_cell_without_volume_is_named(random_positions, value):
    random_positions.cell[3, 1] = value
    with pytest.raises(ValueError, match="the cell of crystal 3 of the batch spans no lattice"):
        DenseSupercell()(random_positions)
