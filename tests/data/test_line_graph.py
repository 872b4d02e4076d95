import itertools
from copy import copy

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from pyg_dim.data import Crystal, CrystalLoader, GraphCache, LineGraph, NearestNeighbors, RadiusGraph
from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.line_graph import edge_vectors
from pyg_dim.false_samples.corruption import relabel

UNDIRECTED = NearestNeighbors(6, 6.0, ties=True, symmetric=True)
KEYS = ("edge_index", "edge_shift", "edge_dist", "line_index", "line_cos")


def everything(dataset):
    return dataset.gather(torch.arange(len(dataset)))


def edges(batch):
    """(source, target, image) of every edge."""
    return [(*pair, *shift) for pair, shift in zip(batch.edge_index.T.tolist(), batch.edge_shift.tolist(), strict=True)]


def back(edge):
    source, target, *shift = edge
    return target, source, *(-n for n in shift)


@pytest.mark.parametrize("ties", [True, False])
def test_undirected_edges_are_those_of_either_direction(dataset, ties):
    directed = edges(NearestNeighbors(5, 6.0, ties=ties)(everything(dataset)))
    batch = NearestNeighbors(5, 6.0, ties=ties, symmetric=True)(everything(dataset))
    undirected = edges(batch)
    assert len(set(undirected)) == len(undirected)
    assert set(undirected) == set(directed) | {back(edge) for edge in directed}
    assert len(undirected) > len(directed)
    length = dict(zip(undirected, batch.edge_dist.tolist(), strict=True))
    assert all(abs(length[edge] - length[back(edge)]) < 1e-12 for edge in undirected)
    torch.testing.assert_close(edge_vectors(batch).norm(dim=1), batch.edge_dist, rtol=0, atol=1e-9)


def test_undirected_edges_are_sorted_as_others(dataset):
    batch = UNDIRECTED(everything(dataset))
    target = batch.edge_index[1]
    assert (target.diff() >= 0).all()
    assert (batch.edge_dist.diff()[target.diff() == 0] >= -1e-5).all()


def test_edges_to_own_images_come_once(make_dataset):
    """Simple cubic: each of the six edges of the one site is the way back of another."""
    batch = NearestNeighbors(6, symmetric=True)(
        make_dataset([([11], np.zeros((1, 3)), 3 * np.eye(3))]).gather(torch.tensor([0]))
    )
    assert len(set(edges(batch))) == batch.edge_dist.numel() == 6
    # One of the six is enough for its way back to be there.
    batch = NearestNeighbors(1, symmetric=True)(batch)
    assert edges(batch)[1] == back(edges(batch)[0])
    assert batch.edge_dist.tolist() == [3, 3]


def test_symmetric_is_an_option():
    assert repr(UNDIRECTED) == "NearestNeighbors(k=6, cutoff=6.0, pad=False, ties=True, symmetric=True)"
    assert repr(LineGraph(UNDIRECTED)) == f"LineGraph({UNDIRECTED!r})"
    with pytest.raises(ValueError, match="choose pad or symmetric"):
        NearestNeighbors(pad=True, symmetric=True)


@pytest.mark.parametrize("graph", [UNDIRECTED, NearestNeighbors(4), RadiusGraph(3.5)], ids=repr)
def test_line_graph_pair_by_pair(dataset, graph):
    """Every pair of edges looked at, with vectors from the definition; directed and undirected crystal graphs."""
    batch = LineGraph(graph)(everything(dataset))
    vectors = []
    for (source, target), shift in zip(batch.edge_index.T, batch.edge_shift, strict=True):
        image = batch.pos[source] + shift.double() @ batch.cell[batch.batch[source]]
        vectors.append(batch.pos[target] - image)
    source, target = batch.edge_index.tolist()
    expected = [(a, b) for b in range(len(source)) for a in range(len(source)) if target[a] == source[b] and a != b]
    assert batch.line_index.T.tolist() == [list(pair) for pair in expected]
    cosine = [-vectors[a] @ vectors[b] / (vectors[a].norm() * vectors[b].norm()) for a, b in expected]
    torch.testing.assert_close(batch.line_cos, torch.stack(cosine), rtol=0, atol=1e-12)
    assert batch.line_cos.abs().max() <= 1
    assert batch.line_index.dtype == torch.int64


def test_the_way_back_is_a_neighbour_of_an_edge(dataset):
    batch = LineGraph(UNDIRECTED)(everything(dataset))
    known = edges(batch)
    first, second = batch.line_index.tolist()
    returning = [known[b] == back(known[a]) for a, b in zip(first, second, strict=True)]
    assert sum(returning) == len(known)
    torch.testing.assert_close(batch.line_cos[torch.tensor(returning)], torch.ones(len(known)).double())


def test_angles_of_simple_cubic(make_dataset):
    """Six edges of one site to its own images: each follows the five others, not itself (which would be at 180°)."""
    batch = make_dataset([([11], np.zeros((1, 3)), 3 * np.eye(3))]).gather(torch.tensor([0]))
    cosine = LineGraph(NearestNeighbors(6, symmetric=True))(batch).line_cos
    assert cosine.numel() == 30
    assert cosine.round(decimals=12).unique(return_counts=True)[1].tolist() == [24, 6]
    assert cosine.max() == 1


def test_without_edges(make_dataset):
    batch = make_dataset([([11], np.zeros((1, 3)), 30 * np.eye(3))] * 2).gather(torch.tensor([0, 1]))
    batch = LineGraph(UNDIRECTED)(batch)
    assert batch.edge_index.shape == batch.line_index.shape == (2, 0)
    assert batch.line_cos.shape == (0,)


def test_batched_equals_one_by_one(dataset):
    graph = LineGraph(UNDIRECTED)
    together = graph(everything(dataset))
    site = edge = line = 0
    for row in range(len(dataset)):
        alone = graph(dataset.gather(torch.tensor([row])))
        e, n = alone.edge_dist.numel(), alone.line_cos.numel()
        assert together.edge_index[:, edge : edge + e].equal(alone.edge_index + site)
        assert together.line_index[:, line : line + n].equal(alone.line_index + edge)
        torch.testing.assert_close(together.line_cos[line : line + n], alone.line_cos, rtol=0, atol=1e-12)
        site, edge, line = site + alone.num_nodes, edge + e, line + n
    assert together.line_cos.numel() == line


def environments(crystal, graph):
    """Of every site: the sorted (distance, sorted cosines) of the edges that end there."""
    z, pos, cell = crystal
    batch = CrystalBatch(
        z=torch.as_tensor(z), pos=torch.as_tensor(pos), cell=torch.as_tensor(cell)[None], ptr=torch.tensor([0, len(z)]),
        batch=torch.zeros(len(z), dtype=torch.long),
    )  # fmt: skip
    batch = graph(batch)
    second = batch.line_index[1]
    found = []
    for site in range(len(z)):
        mine = [
            (batch.edge_dist[e].item(), *sorted(batch.line_cos[second == e].tolist()))
            for e in (batch.edge_index[1] == site).nonzero()[:, 0]
        ]
        found.append(sorted([round(value, 6) + 0.0 for value in edge] for edge in mine))
    return found


@pytest.mark.parametrize("change", ["order", "images", "cell", "rotation"])
def test_the_description_of_a_crystal_does_not_show(change, symmetric_crystal, random_crystal, random_rotation):
    rng = np.random.default_rng(3)
    for crystal in (symmetric_crystal, random_crystal(rng, 5)):
        z, pos, cell = crystal
        order = np.arange(len(z))
        if change == "order":
            order = rng.permutation(len(z))[::-1]
            other = z[order], pos[order], cell
        elif change == "images":
            other = z, pos + rng.integers(-3, 4, (len(z), 3)) @ cell, cell
        elif change == "cell":
            other = z, pos, np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]]) @ cell
        else:
            rotation = random_rotation(rng)
            other = z, pos @ rotation, cell @ rotation
        graph = LineGraph(NearestNeighbors(7, ties=True, symmetric=True))
        before, after = (environments(c, graph) for c in (crystal, other))
        for new, old in enumerate(order):
            assert [len(edge) for edge in after[new]] == [len(edge) for edge in before[old]]
            for a, b in zip(after[new], before[old], strict=True):
                np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_follow_the_positions(make_dataset, random_crystal, dtype):
    crystals = [random_crystal(np.random.default_rng(1), 4)]
    batch = LineGraph(UNDIRECTED)(make_dataset(crystals, dtype=dtype).gather(torch.tensor([0])))
    exact = LineGraph(UNDIRECTED)(make_dataset(crystals).gather(torch.tensor([0])))
    assert batch.line_cos.dtype == batch.edge_dist.dtype == dtype
    torch.testing.assert_close(batch.line_cos.double(), exact.line_cos, rtol=0, atol=1e-6)


def test_edges_of_length_zero_have_no_angle(make_dataset, random_crystal):
    """As padding makes them."""
    batch = make_dataset([random_crystal(np.random.default_rng(1), 2)]).gather(torch.tensor([0]))
    assert LineGraph(NearestNeighbors(200, 4.0, pad=True))(batch).line_cos.isfinite().all()


def test_crystals_are_collated_by_pyg(dataset):
    graph = LineGraph(UNDIRECTED)
    alone = [
        graph(Crystal(z=one.z, pos=one.pos, cell=one.cell))
        for one in (dataset.gather(torch.tensor([row])) for row in range(5))
    ]
    batch = next(iter(DataLoader(alone, batch_size=5)))
    expected = graph(dataset.gather(torch.arange(5)))
    assert all(batch[key].equal(expected[key]) for key in KEYS)


def test_a_loader_and_a_cache_give_the_same(dataset, tmp_path):
    """What is kept is the crystal graph alone."""
    cache = GraphCache(dataset, UNDIRECTED, tmp_path / "graphs.npz")
    loaders = [CrystalLoader(dataset, LineGraph(graph), batch_sites=20, seed=2) for graph in (cache, UNDIRECTED)]
    for mine, theirs in itertools.zip_longest(*loaders):
        assert mine.line_index.equal(theirs.line_index)
        torch.testing.assert_close(mine.line_cos, theirs.line_cos, rtol=0, atol=1e-12)
    assert str(tmp_path) in repr(LineGraph(cache))


def test_other_species_leave_the_line_graph_as_it_is(dataset):
    batch = LineGraph(UNDIRECTED)(everything(dataset))
    false = relabel(copy(batch), torch.arange(batch.num_nodes).flip(0))
    assert all(false[key] is batch[key] for key in KEYS)
