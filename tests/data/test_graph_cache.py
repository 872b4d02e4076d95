import logging

import numpy as np
import pytest
import torch

from pyg_dim.data import (
    CrystalLoader,
    DenseSupercell,
    GraphCache,
    LineGraph,
    NearestNeighbors,
    RadiusGraph,
    graph_cache,
)
from pyg_dim.data.symmetry import SymmetryClasses

GRAPH = NearestNeighbors(6)


class Counting:
    """A graph that counts what it builds."""

    def __init__(self, graph=GRAPH):
        self.graph, self.built = graph, 0

    def __call__(self, batch):
        self.built += batch.num_graphs
        return self.graph(batch)

    def __repr__(self):
        return repr(self.graph)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "graphs.npz"


@pytest.mark.parametrize("graph", [GRAPH, NearestNeighbors(40, 3.0), RadiusGraph(4.0), DenseSupercell(20)], ids=repr)
def test_cached_graphs_are_those_that_are_built(dataset, path, graph, monkeypatch):
    monkeypatch.setattr(graph_cache, "_BATCH_SITES", 10)
    for cache in (GraphCache(dataset, graph, path), GraphCache(dataset, graph, path)):
        loader, expected = (CrystalLoader(dataset, one, batch_sites=20, seed=4) for one in (cache, graph))
        for mine, theirs in zip(loader, expected, strict=True):
            for key in ("edge_index", "edge_shift", "edge_dist"):
                torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=1e-12)


def test_graphs_are_built_once(dataset, path, caplog):
    graph = Counting()
    with caplog.at_level(logging.WARNING):
        GraphCache(dataset, graph, path)
        GraphCache(dataset, graph, path)
    assert graph.built == len(dataset)
    assert not caplog.text
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def moved(dataset):
    changed = dataset.subset(torch.arange(len(dataset)))
    changed.pos[5] += 0.01
    return changed


def strained(dataset):
    changed = dataset.subset(torch.arange(len(dataset)))
    changed.cell[5] *= 1.01
    return changed


def renamed(dataset):
    changed = dataset.subset(torch.arange(len(dataset)))
    changed.z[changed.ptr[5]] += 1
    return changed


@pytest.mark.parametrize(
    ("graph", "change"),
    [
        (NearestNeighbors(7), lambda d: d),
        (GRAPH, moved),
        (GRAPH, strained),
        (GRAPH, renamed),
        (GRAPH, lambda d: d.subset(torch.arange(12).flip(0))),
        (GRAPH, lambda d: d.subset(torch.arange(11))),
    ],
)
def test_a_stale_file_is_made_anew_with_a_message(dataset, path, caplog, graph, change):
    GraphCache(dataset, GRAPH, path)
    counting, other = Counting(graph), change(dataset)
    cache = GraphCache(other, counting, path)
    assert counting.built == len(other)
    assert "graphs.npz was made of" in caplog.text
    assert "built anew" in caplog.text
    rows = torch.tensor([3, 9])
    assert cache(other.gather(rows)).edge_dist.equal(graph(other.gather(rows)).edge_dist)
    GraphCache(other, counting, path)
    assert counting.built == len(other)


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "pickle"])
def test_a_damaged_file_is_made_anew_with_a_message(dataset, path, caplog, damage):
    expected = GraphCache(dataset, GRAPH, path)(dataset.gather(torch.arange(12)))
    contents = path.read_bytes()
    if damage == "cut":
        path.write_bytes(contents[: len(contents) // 2])
    elif damage == "changed":
        middle = contents.index(b"distance.npy") + 400
        path.write_bytes(contents[:middle] + bytes([contents[middle] ^ 1]) + contents[middle + 1 :])
    elif damage == "other":
        path.write_text("no archive")
    else:
        np.savez(path, key=np.array({"a": 1}, dtype=object))
    graph = Counting()
    batch = GraphCache(dataset, graph, path)(dataset.gather(torch.arange(12)))
    assert graph.built == 12
    assert "graphs.npz is damaged" in caplog.text
    assert batch.edge_dist.equal(expected.edge_dist)


def stacked(dataset):
    """Sites of one crystal in another order."""
    changed = dataset.subset(torch.arange(len(dataset)))
    row = int(dataset.num_sites.argmax())
    changed.pos[dataset.ptr[row] : dataset.ptr[row + 1]] = changed.pos[dataset.ptr[row] : dataset.ptr[row + 1]].flip(0)
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", [moved, strained, renamed, stacked])
def test_crystals_of_equal_size_but_other_sites_are_refused(dataset, path, change, dtype):
    dataset = dataset.subset(torch.arange(len(dataset)))
    dataset.pos, dataset.cell = dataset.pos.to(dtype), dataset.cell.to(dtype)
    cache = GraphCache(dataset, GRAPH, path)
    rows = torch.arange(len(dataset))
    cache(dataset.gather(rows.flip(0)))
    with pytest.raises(ValueError, match="graphs of other crystals"):
        cache(change(dataset).gather(rows))


def test_a_subset_of_crystals_of_one_size_is_refused(make_dataset, random_crystal, path):
    rng = np.random.default_rng(0)
    dataset = make_dataset([random_crystal(rng, 3) for _ in range(5)])
    cache = GraphCache(dataset, GRAPH, path)
    with pytest.raises(ValueError, match="graphs of other crystals"):
        cache(dataset.subset(torch.tensor([2, 1])).gather(torch.tensor([0, 1])))


def test_crystals_of_another_data_set_are_refused(dataset, path):
    cache = GraphCache(dataset, GRAPH, path)
    with pytest.raises(ValueError, match="graphs of other crystals"):
        cache(dataset.subset(torch.arange(12).flip(0)).gather(torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        GraphCache(dataset, GRAPH, path.with_suffix(".bin"))
    assert repr(cache) == f"GraphCache({GRAPH!r}, {str(path)!r})"


@pytest.mark.parametrize("graph", [LineGraph(RadiusGraph(3.0)), SymmetryClasses(RadiusGraph(3.0), 1e-5)], ids=repr)
def test_graphs_that_add_more_than_edges_go_around_a_cache(tmp_path, dataset, graph):
    with pytest.raises(ValueError, match=rf"edges alone: put it inside, as in {type(graph).__name__}\(GraphCache"):
        GraphCache(dataset, graph, tmp_path / "graphs.npz")
    assert not list(tmp_path.glob("graphs*"))
