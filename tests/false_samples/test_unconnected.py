from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyg_dim import Level, record
from pyg_dim.constituents import Constituents
from pyg_dim.false_samples.unconnected import unconnected, unconnected_nodes

DRAWS = 4000


def free_nodes(target: int, edges: Tensor, graph: Tensor) -> tuple[set[int], set[int]]:
    """Nodes that are not connected to one: of its own graph, of others."""
    taken = {int(s) for s, t in edges.T.tolist() if t == target} | {target}
    free = [n for n in range(graph.numel()) if n not in taken]
    return {n for n in free if graph[n] == graph[target]}, {n for n in free if graph[n] != graph[target]}


def all_graphs(nodes: int):
    """Every directed graph with self-loops on few nodes."""
    pairs = list(itertools.product(range(nodes), repeat=2))
    for chosen in itertools.product([False, True], repeat=len(pairs)):
        edges = [pair for pair, there in zip(pairs, chosen, strict=True) if there]
        if edges:
            yield torch.tensor(edges).T


def test_every_graph_of_three_nodes_beside_one_of_two() -> None:
    """511 graphs, each edge drawn for many times: never a neighbour, and every other node comes."""
    graph = torch.tensor([0, 0, 0, 1, 1])
    pair = torch.tensor([[3, 4, 4], [4, 3, 3]])  # an edge that repeats
    generator = torch.Generator().manual_seed(0)
    for edges in all_graphs(3):
        every = torch.cat([edges, pair], dim=1)
        repeated = every.repeat(1, 40)
        node, exists = unconnected_nodes(repeated[1], repeated[0], graph, 2, generator)
        for target in set(every[1].tolist()):
            inside, outside = free_nodes(target, every, graph)
            drawn = set(node[(repeated[1] == target) & exists].tolist())
            assert drawn <= inside | outside
            assert exists[repeated[1] == target].all() == bool(inside | outside)
            assert not outside or drawn & outside
            assert not inside or drawn & inside


def test_every_graph_of_three_nodes_alone() -> None:
    graph = torch.zeros(3, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for edges in all_graphs(3):
        repeated = edges.repeat(1, 20)
        node, exists = unconnected_nodes(repeated[1], repeated[0], graph, 1, generator)
        for target in set(edges[1].tolist()):
            inside, _ = free_nodes(target, edges, graph)
            here = repeated[1] == target
            assert exists[here].all() == exists[here].any() == bool(inside)
            assert not inside or set(node[here].tolist()) <= inside


def test_nodes_are_drawn_uniformly_half_from_the_same_graph() -> None:
    graph = torch.tensor([0] * 6 + [1] * 3)
    source, target = torch.tensor([[1, 4, 4, 0]] * DRAWS).flatten(), torch.full((4 * DRAWS,), 2)
    node, exists = unconnected_nodes(target, source, graph, 2, torch.Generator().manual_seed(0))
    assert exists.all()
    share = torch.bincount(node, minlength=9) / node.numel()
    expected = torch.tensor([0, 0, 0, 1 / 4, 0, 1 / 4, 1 / 6, 1 / 6, 1 / 6])
    torch.testing.assert_close(share, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_larger_graphs_against_a_plain_list(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1, 7, 12, 3])
    graph = torch.repeat_interleave(sizes)
    start = sizes.cumsum(0) - sizes
    target = torch.randint(int(sizes.sum()), (300,), generator=generator)
    source = start[graph[target]] + (torch.rand(300, generator=generator) * sizes[graph[target]]).long()
    node, exists = unconnected_nodes(target, source, graph, 4, generator)
    edges = torch.stack([source, target])
    for e in range(300):
        inside, outside = free_nodes(int(target[e]), edges, graph)
        assert exists[e]
        assert int(node[e]) in inside | outside


def recorded(constituents: Constituents, index: Tensor, groups: int, batch=None, scope=None, weight=None):
    level = Level(3, constituents.channels, scope=scope)
    with record(level, batch) as tape:
        level(torch.randn(groups, 3), constituents=constituents, index=index, weight=weight)
    return tape.records[0]


def test_the_edge_features_are_those_of_the_message_that_is_replaced() -> None:
    x, e = torch.randn(6, 2), torch.randn(4, 3)
    source, target = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 0])
    r = recorded(Constituents((x, source), (e, None)), target, 6, weight=torch.tensor([1.0, 2.0, 0.0, 1.0]))
    false = unconnected(r, torch.Generator().manual_seed(0))
    dense = false.constituents.dense()
    assert dense[:, 2:].equal(e)
    assert false.target.equal(target)
    assert false.weight.equal(torch.tensor([1.0, 2.0, 0.0, 1.0]))
    for k in range(4):
        assert not any(dense[k, :2].equal(x[n]) for n in (int(source[k]), int(target[k])))


def test_a_message_that_equals_a_true_one_is_masked() -> None:
    """Nodes 1 and 2 look alike; node 3 does not: a message from 2 in the place of one from 1 is no false one."""
    x = torch.tensor([[0.0], [1.0], [1.0], [5.0]])
    edges = torch.tensor([[1] * 50, [0] * 50])
    r = recorded(Constituents((x, edges[0]), (torch.ones(50, 1), None)), edges[1], 4)
    false = unconnected(r, torch.Generator().manual_seed(0))
    sent = false.constituents.dense()[:, 0]
    assert set(sent.tolist()) == {1.0, 5.0}
    assert false.weight.equal((sent == 5.0).float())


def test_another_edge_makes_another_message() -> None:
    """The same sender over an edge of another length is a false message."""
    x = torch.tensor([[0.0], [1.0], [1.0]])
    r = recorded(Constituents((x, torch.tensor([1, 0])), (torch.tensor([[0.1], [0.2]]), None)), torch.tensor([0, 2]), 3)
    false = unconnected(r, torch.Generator().manual_seed(0))
    # Node 2 in the place of node 1 over the same edge is equal; node 1 in the place of node 0 is not.
    assert false.weight.tolist() == [0.0, 1.0]


def test_a_complete_graph_has_none() -> None:
    source, target = torch.tensor(list(itertools.permutations(range(4), 2))).T
    r = recorded(Constituents((torch.randn(4, 2), source)), target, 4)
    false = unconnected(r)
    assert false.weight.sum() == 0
    loss = r.level.loss(r, kinds=("unconnected",))
    assert loss.loss == 0
    assert loss.coverage["unconnected"] == 0


def test_levels_without_messages_from_nodes_have_none(batch_of) -> None:
    index = torch.tensor([0, 0, 1])
    crystals = batch_of(["Cu", "Cu"])  # as many sites as crystals
    messages = Constituents((torch.randn(2, 2), torch.tensor([1, 0])))
    for scope, has in (("crystal", False), ("site", True)):
        level = Level(3, 2, scope=scope)
        with record(level, crystals) as tape:
            level(torch.randn(2, 3), constituents=messages, index=torch.tensor([0, 1]))
        assert (unconnected(tape.records[0]) is not None) == has
    assert unconnected(recorded(Constituents((torch.randn(3, 2), None)), index, 2)) is None
    assert unconnected(recorded(Constituents((torch.randn(5, 2), index)), index, 2)) is None
    two = Constituents((torch.randn(2, 2), index), (torch.randn(2, 2), 1 - index))
    assert unconnected(recorded(two, index, 2)) is None
    r = recorded(Constituents((torch.randn(3, 2), None)), index, 2)
    assert "unconnected" not in r.level.loss(r, kinds=("other", "unconnected")).terms


def test_other_crystals_give_senders(batch_of) -> None:
    batch = batch_of(["NaCl", "CaTiO3", "Si"])
    source, target = batch.edge_index
    parts = Constituents((batch.x, source), (batch.edge_dist[:, None], None))
    level = Level(3, parts.channels, scope="site").double()
    with record(level, batch) as tape:
        level(torch.randn(batch.z.numel(), 3, dtype=torch.float64), constituents=parts, index=target)
    false = unconnected(tape.records[0], torch.Generator().manual_seed(0))
    sender = false.constituents.parts[0][1]
    # Every site of a dense graph is connected to all of its crystal.
    assert (batch.batch[sender] != batch.batch[target]).all()
    assert false.weight.any()


def test_a_large_feature_does_not_hide_a_small_one() -> None:
    x = torch.tensor([[3e5, 0.0], [0.0, 0.1], [0.0, 0.2], [0.0, 0.15]])
    edges = torch.tensor([[1] * 30, [0] * 30])
    r = recorded(Constituents((x, edges[0])), edges[1], 4)
    assert unconnected(r, torch.Generator().manual_seed(0)).weight.all()
