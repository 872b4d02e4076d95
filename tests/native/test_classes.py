"""The kernels of classes against the plain path, which tests/data/test_symmetry.py compares with brute force."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install -e '.[test]'")
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.graphs import DenseSupercell, NearestNeighbors, RadiusGraph
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.data.symmetry import find_equals, snap_lengths
from pyg_dim.native import fault
from pyg_dim.native.classes import classes_of_equals

pytestmark = pytest.mark.skipif(fault() is not None, reason=str(fault()))
NAMES = ["NaCl", "CaF2", "CaTiO3", "TiO2", "triclinic", "Cu", "Si"]
CLASSES = ("site_class", "site_count", "edge_class", "edge_count")
PAIRS = ("edge_dist", "pair_index", "pair_dist", "pair_count")


def assert_same(batch, tolerance):
    """Every number, bit by bit."""
    species = [batch[key] for key in ("z", "x", "oxidation") if key in batch]
    found = classes_of_equals(batch.edge_index, batch.edge_dist, batch.batch, species, tolerance)
    by_kernel = snap_lengths(find_equals(copy(batch), tolerance))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyg_dim.data.symmetry.usable", lambda *values: False)
        plain = snap_lengths(find_equals(copy(batch), tolerance))
    assert all(values.equal(plain[key]) for key, values in zip(CLASSES, found, strict=True))
    for key in (*CLASSES, *PAIRS):
        assert by_kernel[key].dtype == plain[key].dtype
        assert by_kernel[key].equal(plain[key]), key
    return by_kernel


def distorted(crystals, scale):
    rng = np.random.default_rng(0)
    chosen = [crystals[name] for name in NAMES]
    return [replace(c, fractional=c.fractional + rng.normal(scale=scale, size=c.fractional.shape)) for c in chosen]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tolerance", [0.0, 1e-5, 1e-2, 0.4, 1e9])
def test_known_crystals(batch_of, crystals, dtype, tolerance):
    for chosen in (NAMES, distorted(crystals, 1e-6), distorted(crystals, 1e-2)):
        batch = batch_of(chosen, dtype)
        for graph in (lambda b: b, RadiusGraph(4.0), NearestNeighbors(5, ties=True)):
            assert_same(graph(copy(batch)), tolerance)


def test_decorated_prototypes():
    dataset = decorated_prototypes(40, seed=0)
    batch = assert_same(DenseSupercell()(dataset.gather(torch.arange(len(dataset)))), 1e-4)
    assert 2 * batch.site_count.numel() < batch.z.numel()


def graph_of(sites, edges, dtype=torch.float64):
    """Batch of (crystal, species) sites and (target, source, length) edges."""
    target, source, length = zip(*sorted(edges), strict=True) if edges else ((), (), ())
    crystal, z = zip(*sites, strict=True)
    return CrystalBatch(
        z=torch.tensor(z),
        batch=torch.tensor(crystal),
        edge_index=torch.tensor([source, target], dtype=torch.long),
        edge_dist=torch.tensor(length, dtype=dtype),
    )


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_graph(data):
    """Some sites without edges, crystals that are cut in two, lengths near the tolerance and below zero."""
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    sites = [(k, data.draw(st.integers(1, 2))) for k, size in enumerate(sizes) for _ in range(size)]
    lengths = st.sampled_from([0.0, -0.0, -1.0, 1.0, 1.05, 1.1, 1.25, 2.0, 1e-300, -1e-300])
    edges = []
    for k, size in enumerate(sizes):
        site = st.integers(sum(sizes[:k]), sum(sizes[:k]) + size - 1)
        edges += data.draw(st.lists(st.tuples(site, site, lengths), max_size=30))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    assert_same(graph_of(sites, edges, dtype), data.draw(st.sampled_from([0.0, 0.07, 0.5])))


def test_differences_spread_as_far_as_a_chain_is_long():
    """One round for each site, and rows with more edges of one length than are sorted in place."""
    edges = [(i, j, 1.0) for i in range(40) for j in (i - 1, i + 1) if 0 <= j < 40]
    batch = assert_same(graph_of([(0, 1)] * 40, edges), 0.0)
    assert batch.site_class.equal(batch.site_class.flip(0))
    assert batch.site_count.tolist() == [2] * 20
    everything = [(i, j, 1.0) for i in range(40) for j in range(40) if (i, j) != (7, 21)]
    batch = assert_same(graph_of([(0, 1 + i // 20) for i in range(40)], everything), 0.0)
    assert batch.site_count.tolist() == [19, 1, 20]


def test_all_bits_of_the_species_count(batch_of):
    batch = batch_of(["CaF2", "CaF2"], torch.float32)
    assert assert_same(batch, 1e-4).site_count.tolist() == [1, 2, 1, 2]
    batch.oxidation[2] = 1e-30
    assert assert_same(batch, 1e-4).site_count.tolist() == [1, 1, 1, 1, 2]
    del batch["oxidation"]
    batch.x[4, 8] += 1e-6
    assert assert_same(batch, 1e-4).site_count.tolist() == [1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "edges", [[(1, 0, 1.0), (0, 1, 1.0)], [(0, 2, 1.0)], [(2, 0, 1.0)]], ids=["order", "later", "earlier"]
)
def test_other_graphs_go_the_plain_path(edges):
    batch = graph_of([(0, 1), (0, 1), (1, 1)], [])
    target, source, length = zip(*edges, strict=True)
    batch.edge_index, batch.edge_dist = torch.tensor([source, target]), torch.tensor(length)
    assert classes_of_equals(batch.edge_index, batch.edge_dist, batch.batch, [batch.z], 0.0) is None
    assert sorted(find_equals(batch, 0.0).edge_count.tolist()) in ([2], [1])


def test_crystals_out_of_order_go_the_plain_path():
    batch = graph_of([(1, 1), (0, 1)], [(0, 0, 1.0), (1, 1, 1.0)])
    assert classes_of_equals(batch.edge_index, batch.edge_dist, batch.batch, [batch.z], 0.0) is None
    assert find_equals(batch, 0.0).site_class.tolist() == [0, 1]


def test_numbers_that_cannot_be_read_go_the_plain_path(batch_of):
    """Of another type, which would be read as others, or fewer than there are lengths."""
    batch = batch_of(NAMES)
    species = [batch.z]
    for index in (batch.edge_index.int(), batch.edge_index[:, :-1]):
        assert classes_of_equals(index, batch.edge_dist, batch.batch, species, 1e-4) is None
    assert classes_of_equals(batch.edge_index, batch.edge_dist, batch.batch.int(), species, 1e-4) is None


def test_one_crystal_needs_no_batch(batch_of):
    batch = batch_of(["TiO2"])
    expected = snap_lengths(find_equals(copy(batch), 1e-4))
    del batch["batch"], batch["ptr"]
    found = snap_lengths(find_equals(batch, 1e-4))
    assert all(found[key].equal(expected[key]) for key in (*CLASSES, *PAIRS))


def test_gradients_of_lengths_go_the_plain_path(batch_of):
    batch = find_equals(batch_of(["TiO2"]), 1e-4)
    batch.edge_dist.requires_grad_()
    snap_lengths(batch)
    assert batch.pair_dist.requires_grad


def test_no_batch_carries_room_for_classes_that_are_not_there(batch_of):
    batch = find_equals(batch_of(NAMES), 1e-4)
    for key in CLASSES:
        assert batch[key].untyped_storage().nbytes() == 8 * batch[key].numel()
