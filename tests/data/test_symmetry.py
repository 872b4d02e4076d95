import itertools
from collections import Counter
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from pyg_dim.data import (
    Crystal,
    CrystalLoader,
    DenseSupercell,
    GraphCache,
    LineGraph,
    NearestNeighbors,
    RadiusGraph,
    SymmetryClasses,
)
from pyg_dim.data.keys import CLASS_COUNTS, EQUALS_KEYS, LINE_KEYS
from pyg_dim.data.symmetry import _alike, snap_lengths
from pyg_dim.false_samples.corruption import relabel
from pyg_dim.native import fault


@pytest.fixture(autouse=True, params=["kernels", "plain"])
def path(request, monkeypatch):
    """What finds classes without angles, and their mean lengths."""
    if request.param == "plain":
        monkeypatch.setattr("pyg_dim.data.symmetry.usable", lambda *values: False)
    elif (reason := fault()) is not None:
        pytest.skip(reason)
    return request.param


CRYSTAL_GRAPH = NearestNeighbors(6, 6.0, ties=True, symmetric=True)
GRAPH = SymmetryClasses(LineGraph(CRYSTAL_GRAPH), 1e-5)
RADIUS = SymmetryClasses(RadiusGraph(4.0), 1e-5)
"""Without angles."""
SNAPPED = SymmetryClasses(DenseSupercell(), 1e-4, snap=True)
"""With one length of all edges of a class, and pairs of classes."""
NAMES = ["NaCl", "CaF2", "CaTiO3", "TiO2", "triclinic", "Cu", "Si"]


@pytest.fixture
def batch(batch_of):
    return GRAPH(batch_of(NAMES))


def sizes(batch):
    return {key: batch[count].numel() for key, count in CLASS_COUNTS.items() if key in batch}


def test_known_symmetry(batch_of):
    """Each with the numbers of different sites and edges."""
    for name, sites, edges in [("NaCl", 2, 2), ("CaF2", 2, 3), ("CaTiO3", 3, None), ("TiO2", 2, None), ("Cu", 1, 1)]:
        found = sizes(GRAPH(batch_of([name])))
        assert found["site_class"] == sites
        assert edges in (None, found["edge_class"])


def test_rock_salt_in_full(batch_of):
    """Two kinds of edges, each followed by six: one leads back, one straight on, four at a right angle."""
    batch = GRAPH(batch_of(["NaCl"]))
    assert batch.edge_count.tolist() == [6, 6]
    assert sorted(batch.line_count.tolist()) == [6, 6, 6, 6, 24, 24]
    for number in range(6):
        assert batch.line_cos[batch.line_class == number].std() < 1e-12


def test_without_symmetry_every_row_is_its_own_class(batch_of):
    batch = GRAPH(batch_of(["triclinic"]))
    assert all(batch[count].eq(1).all() for count in CLASS_COUNTS.values())


def test_members_meet_the_same_classes_equally_often(batch):
    """What makes the numbers of a network equal on all members, layer after layer."""
    site, edge, line = (batch[key].tolist() for key in CLASS_COUNTS)
    (source, target), (first, second) = batch.edge_index.tolist(), batch.line_index.tolist()
    of_site = [(int(batch.batch[i]), int(batch.z[i])) for i in range(len(site))]
    met = [Counter(edge[e] for e in range(len(edge)) if target[e] == i) for i in range(len(site))]
    assert_alike(site, list(zip(of_site, met, strict=True)))
    incoming = [Counter() for _ in edge]
    for pair, b in enumerate(second):
        incoming[b][line[pair]] += 1
    assert_alike(edge, [(site[source[e]], site[target[e]], incoming[e]) for e in range(len(edge))])
    assert_alike(line, [(edge[a], edge[b]) for a, b in zip(first, second, strict=True)])
    for values, classes in ((batch.edge_dist, edge), (batch.line_cos, line)):
        for number in range(max(classes) + 1):
            mine = values[torch.tensor(classes) == number]
            assert mine.max() - mine.min() < 1e-5
    assert len(set(line)) < len(line) / 2


def assert_alike(classes, members):
    """All members of a class are equal."""
    known = {}
    for number, member in zip(classes, members, strict=True):
        assert known.setdefault(number, member) == member


def test_counts(batch):
    for key, count in CLASS_COUNTS.items():
        assert batch[key].dtype == torch.int64
        assert batch[count].equal(torch.bincount(batch[key]))


@pytest.mark.parametrize("graph", [GRAPH, RADIUS, SNAPPED], ids=["angles", "edges", "snapped"])
def test_classes_are_in_the_order_of_their_first_members(batch_of, graph):
    batch = graph(batch_of(NAMES))
    for number in (batch.site_class, batch.edge_class):
        assert number.cummax(0).values.diff().max() == 1
        assert number[0] == 0


def test_species_and_oxidation_states_tell_sites_apart(batch_of, crystals, relabelled):
    assert sizes(GRAPH(batch_of([relabelled("NaCl", [11, 11])])))["site_class"] == 1
    assert sizes(GRAPH(batch_of([relabelled("CaF2", [20, 9, 17])])))["site_class"] == 3
    batch = batch_of(["CaF2"])
    batch.oxidation[1:] = torch.tensor([-1.0, -2.0])
    assert sizes(GRAPH(batch))["site_class"] == 3
    del batch["oxidation"]
    assert sizes(GRAPH(batch))["site_class"] == 2


def test_site_features_of_your_own_tell_sites_apart(batch_of) -> None:
    batch = batch_of(["Si"])
    batch.x = batch.x.index_put((torch.tensor([1]), torch.tensor([0])), torch.tensor(7.0, dtype=batch.x.dtype))
    assert SymmetryClasses(RadiusGraph(4.0), 1e-5)(batch).site_count.tolist() == [1, 1]


def test_small_distortions_count(batch_of, crystals):
    strained = replace(crystals["Cu"], cell=crystals["Cu"].cell @ np.diag([1, 1, 1.001]))
    assert sizes(GRAPH(batch_of([strained])))["line_class"] > sizes(GRAPH(batch_of(["Cu"])))["line_class"]
    coarse = SymmetryClasses(LineGraph(CRYSTAL_GRAPH), 1e-2)
    assert sizes(coarse(batch_of([strained]))) == sizes(GRAPH(batch_of(["Cu"])))


def test_differences_spread_from_site_to_site(make_dataset):
    """A chain of nine sites, one of them another element: what tells the others apart is how far away it is."""
    pos = np.stack([2.5 * np.arange(9), np.zeros(9), np.zeros(9)], axis=1)
    batch = make_dataset([([11] * 4 + [3] + [11] * 4, pos, np.diag([22.5, 30, 30]))]).gather(torch.tensor([0]))
    chain = NearestNeighbors(2, 3.0, symmetric=True)
    for graph in (chain, LineGraph(chain)):
        batch = SymmetryClasses(graph, 1e-5)(batch)
        assert batch.site_class[:5].unique().numel() == 5
        assert batch.site_class.equal(batch.site_class.flip(0))
        assert sorted(batch.edge_count.tolist()) == [2] * 9


def test_lengths_of_one_crystal_do_not_bridge_those_of_another(batch_of, crystals):
    graph = SymmetryClasses(LineGraph(CRYSTAL_GRAPH), 1e-2)
    strained = [replace(crystals["Cu"], cell=crystals["Cu"].cell @ np.diag([1, 1, 1 + s])) for s in (0.012, 0.006)]
    one, other = (sizes(graph(batch_of([crystal]))) for crystal in strained)
    assert one["edge_class"] > other["edge_class"]
    assert sizes(graph(batch_of(strained))) == {key: one[key] + other[key] for key in CLASS_COUNTS}


def test_batched_equals_one_by_one(batch, batch_of):
    alone = [sizes(GRAPH(batch_of([name]))) for name in NAMES]
    assert sizes(batch) == {key: sum(one[key] for one in alone) for key in CLASS_COUNTS}
    twice = GRAPH(batch_of(["NaCl", "NaCl"]))
    assert sizes(twice) == {key: 2 * value for key, value in alone[0].items()}


def test_single_precision_sees_the_symmetry(batch_of):
    for name in NAMES:
        assert sizes(GRAPH(batch_of([name], torch.float32))) == sizes(GRAPH(batch_of([name])))


@pytest.mark.parametrize("graph", [GRAPH, RADIUS, SNAPPED], ids=["angles", "edges", "snapped"])
def test_crystals_are_collated_by_pyg(dataset, graph):
    alone = [
        graph(Crystal(z=one.z, pos=one.pos, cell=one.cell)) for one in map(dataset.gather, torch.arange(5)[:, None])
    ]
    batch = next(iter(DataLoader(alone, batch_size=5)))
    expected = graph(dataset.gather(torch.arange(5)))
    assert sizes(batch) == sizes(expected)
    assert len(sizes(batch)) == (3 if graph is GRAPH else 2)
    assert ("pair_index" in batch) == (graph is SNAPPED)
    if graph is SNAPPED:
        assert_pairs_stand_for_the_edges(batch)
    for key in sizes(batch):
        assert batch[CLASS_COUNTS[key]].equal(torch.bincount(batch[key]))
        pairs = torch.stack([batch[key], expected[key]], dim=1).unique(dim=0)
        assert len(pairs) == sizes(batch)[key]


def test_other_species_go_without_classes(batch):
    batch = snap_lengths(batch)
    false = relabel(batch, torch.arange(batch.num_nodes).flip(0))
    assert not any(key in false for key in EQUALS_KEYS)
    assert all(key in batch for key in EQUALS_KEYS)
    assert false.edge_dist is batch.edge_dist
    assert false.line_index is batch.line_index


@pytest.mark.parametrize("graph", [CRYSTAL_GRAPH, RADIUS.graph, DenseSupercell(), LineGraph(CRYSTAL_GRAPH)], ids=repr)
def test_other_edges_take_old_classes_away(batch, graph):
    """And an old line graph, of which the new classes would be made."""
    batch = graph(snap_lengths(batch))
    assert not any(key in batch for key in EQUALS_KEYS)
    assert all((key in batch) == isinstance(graph, LineGraph) for key in LINE_KEYS)


def test_angles_take_classes_away_that_do_not_know_them(batch_of):
    assert not any(key in LineGraph(RADIUS)(batch_of(NAMES)) for key in EQUALS_KEYS)


def test_without_edges(make_dataset):
    box = ([11], np.zeros((1, 3)), 30 * np.eye(3))
    batch = GRAPH(make_dataset([box, box]).gather(torch.arange(2)))
    assert sizes(batch) == {"site_class": 2, "edge_class": 0, "line_class": 0}
    assert sizes(RADIUS(batch)) == {"site_class": 2, "edge_class": 0}
    assert snap_lengths(RADIUS(batch)).pair_index.shape == (2, 0)


def test_tolerance_is_checked():
    for tolerance in (-1e-9, float("nan")):
        with pytest.raises(ValueError, match="tolerance must be a difference of at least 0, not"):
            SymmetryClasses(CRYSTAL_GRAPH, tolerance)


def test_repr():
    assert repr(RADIUS) == "SymmetryClasses(RadiusGraph(cutoff=4.0), tolerance=1e-05)"
    assert repr(SNAPPED) == "SymmetryClasses(DenseSupercell(max_sites=50), tolerance=0.0001, snap=True)"


def assert_pairs_stand_for_the_edges(batch):
    """Every site of a class meets the sites of each class at each length as often as the pairs say."""
    source, target = batch.pair_index.tolist()
    assert list(zip(target, source, strict=True)) == sorted(zip(target, source, strict=True))
    pairs, met = {}, {}
    for i, j, d, m in zip(target, source, batch.pair_dist.tolist(), batch.pair_count.tolist(), strict=True):
        pairs.setdefault(i, Counter())[j, d] += m
    site = batch.site_class.tolist()
    for j, i, d in zip(*batch.edge_index.tolist(), batch.edge_dist.tolist(), strict=True):
        met.setdefault(i, Counter())[site[j], d] += 1
    assert len(met) == batch.z.numel()
    assert all(pairs[site[i]] == edges for i, edges in met.items())


def distorted(crystals, scale):
    """Each position of a crystal a little elsewhere."""
    rng = np.random.default_rng(0)
    chosen = [crystals[name] for name in NAMES]
    return [replace(c, fractional=c.fractional + rng.normal(scale=scale, size=c.fractional.shape)) for c in chosen]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_of_classes(batch_of, crystals, dtype):
    for chosen in (NAMES, distorted(crystals, 1e-6)):
        batch = SNAPPED(batch_of(chosen, dtype))
        assert_pairs_stand_for_the_edges(batch)
        assert batch.pair_dist.dtype == dtype
        assert 2 * batch.pair_count.numel() < batch.edge_dist.numel()


def test_snapped_lengths_are_the_means_of_their_classes(batch_of, crystals):
    known = SymmetryClasses(SNAPPED.graph, 1e-4)(batch_of(distorted(crystals, 1e-6)))
    batch = snap_lengths(copy(known))
    assert 1e-8 < (batch.edge_dist - known.edge_dist).abs().max() < 1e-4
    for number in range(known.edge_count.numel()):
        mine = known.edge_class == number
        assert batch.edge_dist[mine].unique().numel() == 1
        assert torch.isclose(batch.edge_dist[mine][0], known.edge_dist[mine].mean(), rtol=0, atol=1e-12)
    alone = known.edge_count[known.edge_class] == 1
    assert alone.sum() > 50
    assert batch.edge_dist[alone].equal(known.edge_dist[alone])


def test_lengths_stay_where_they_are_not_to_be_snapped(batch_of):
    batch = batch_of(NAMES)
    assert SymmetryClasses(lambda b: b, 1e-2)(copy(batch)).edge_dist is batch.edge_dist


def test_negative_lengths_and_zeros_are_in_order():
    values = torch.tensor([0.5, -0.25, -0.0, 1e-6, -2.0, 0.0, -0.2500001, 0.5])
    assert _alike(torch.zeros(8, dtype=torch.long), values, 1e-6).tolist() == [3, 1, 2, 2, 0, 2, 1, 3]


def refined(batch, tolerance):
    """Classes without angles, with sets in the place of sums of hashes: [N] and [E] values that name them."""
    (source, target), length = batch.edge_index.tolist(), []
    rank = {}
    for crystal in range(batch.num_graphs):
        mine = [e for e in range(len(source)) if batch.batch[target[e]] == crystal]
        mine.sort(key=lambda e: batch.edge_dist[e])
        number = 0
        for before, e in itertools.pairwise([None, *mine]):
            number += before is not None and float(batch.edge_dist[e] - batch.edge_dist[before]) > tolerance
            rank[e] = number
    length = [rank[e] for e in range(len(source))]
    site = [(int(c), int(z)) for c, z in zip(batch.batch, batch.z, strict=True)]
    for _ in range(len(site)):
        edge = [(length[e], site[source[e]], site[target[e]]) for e in range(len(source))]
        met = [sorted(edge[e] for e in range(len(source)) if target[e] == i) for i in range(len(site))]
        names = {key: (key[0][0], n) for n, key in enumerate(sorted(set(zip(site, map(tuple, met), strict=True))))}
        site = [names[key] for key in zip(site, map(tuple, met), strict=True)]
    return site, [(length[e], site[source[e]], site[target[e]]) for e in range(len(source))]


def test_without_angles_as_by_brute_force(batch_of):
    batch = SymmetryClasses(RadiusGraph(3.3), 1e-5)(batch_of(NAMES))
    assert "line_class" not in batch
    for found, expected in zip((batch.site_class, batch.edge_class), refined(batch, 1e-5), strict=True):
        assert_alike(found.tolist(), expected)
        assert_alike(expected, found.tolist())
        assert len(set(expected)) < len(expected)


def test_without_angles_classes_of_sites_are_the_orbits_of_the_space_group(batch_of, crystals):
    spglib = pytest.importorskip("spglib")
    for name in NAMES:
        crystal = crystals[name]
        orbits = spglib.get_symmetry_dataset((crystal.cell, crystal.fractional, crystal.z)).equivalent_atoms
        found = RADIUS(batch_of([name])).site_class.tolist()
        assert_alike(orbits.tolist(), found)
        assert_alike(found, orbits.tolist())


def test_in_a_loader_around_a_cache(dataset, tmp_path):
    """What is kept is the crystal graph alone."""
    cache = GraphCache(dataset, RADIUS.graph, tmp_path / "graphs.npz")
    graphs = (SymmetryClasses(cache, 1e-5), RADIUS)
    for mine, theirs in itertools.zip_longest(*(CrystalLoader(dataset, g, batch_sites=20, seed=2) for g in graphs)):
        assert all(mine[key].equal(theirs[key]) for key in ("site_class", "site_count", "edge_class", "edge_count"))
    batch = RADIUS(dataset.gather(torch.arange(3)))
    assert not any(key in cache(copy(batch)) for key in EQUALS_KEYS)
