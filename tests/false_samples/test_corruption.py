from __future__ import annotations

import pytest
import torch
from torch import nn

from pyg_dim import record
from pyg_dim.constituents import Constituents
from pyg_dim.data.graphs import NearestNeighbors
from pyg_dim.false_samples.transplant import transplant
from pyg_dim.level import Level


class Ends(nn.Module):
    """An edge level of the two ends of each edge, whose site features differ from pass to pass."""

    def __init__(self, with_distance: bool = False) -> None:
        super().__init__()
        self.level = Level(3, 4 + with_distance, scope="edge", noise="none")
        self.with_distance = with_distance

    def forward(self, batch) -> None:
        edges = torch.arange(batch.edge_dist.numel())
        sites = (torch.randn(batch.z.numel(), 4, dtype=torch.float64), torch.cat([*batch.edge_index]))
        distance = (batch.edge_dist[:, None], torch.cat([edges, edges]))
        self.level(
            torch.randn(edges.numel(), 3, dtype=torch.float64),
            constituents=Constituents(sites, distance) if self.with_distance else Constituents(sites),
            index=torch.cat([edges, edges]),
        )


@pytest.fixture
def graph_of(batch_of):
    return lambda names: NearestNeighbors(k=5, ties=True)(batch_of(names))


def sample(model: Ends, batch, kind: str, generator):
    corruption = transplant(batch, kinds=(kind,), generator=generator)
    tapes = []
    for given in (batch, corruption.batch):
        with record(model, given) as tape:
            model(given)
        tapes.append(tape.records[0])
    return corruption, corruption.kinds[0].sample(*tapes)


@pytest.mark.parametrize("with_distance", [False, True])
def test_constituents_of_edges_are_masked_by_species(graph_of, relabelled, generator, with_distance: bool) -> None:
    """Against a search over the ends of every edge, one by one; in the batch are compounds of the same elements."""
    batch = graph_of(["NaCl", relabelled("NaCl", [17, 11]), "CaTiO3", relabelled("CaTiO3", [22, 20, 8, 8, 8]), "ZnS"])
    corruption, found = sample(Ends(with_distance), batch, "composition", generator)
    number = batch.edge_dist.numel()
    assert found.target.equal(torch.arange(number).repeat(2))
    false_ends = corruption.batch.z[torch.cat([*batch.edge_index])].tolist()
    true_ends = batch.z[batch.edge_index].T.tolist()
    expected = [z not in true_ends[k % number] for k, z in enumerate(false_ends)]
    assert found.weight.bool().tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_constituents_of_edges_in_a_batch_of_one_crystal_are_all_masked(graph_of, generator) -> None:
    _, found = sample(Ends(), graph_of(["CaTiO3"]), "composition", generator)
    assert not found.weight.any()


def test_a_polymorph_has_no_meaning_at_edges(graph_of, generator) -> None:
    _, found = sample(Ends(), graph_of(["NaCl", "ZnS"]), "polymorph", generator)
    assert found is None
