"""Compiled code serves a whole run: nothing is compiled again, whatever the batches are like."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pyg_dim import level
from pyg_dim.models import Encoder, build, sitenet
from pyg_dim.objectives.deep_infomax import DeepInfoMax

SMALL = {
    "sitenet": {"site_channels": 8, "pair_channels": 6, "local_channels": 8, "pre_pool": [8], "post_pool": [8, 10]},
    "cgcnn": {"site_channels": 8, "convolutions": 2, "gaussian_step": 0.8, "k": 7},
}
BATCHES = [
    ["NaCl", "ZnS", "CaTiO3", "CaF2"],
    ["triclinic", "TiO2"],
    ["Cu", "NaCl", "TiO2", "CaF2", "Si", "ZnS"],
    ["Cu", "Cu"],
    ["TiO2"],
    ["Cu"],
]
"""The first as they mostly are; then other numbers of crystals, sites and pairs, one crystal alone, one site alone."""


@pytest.fixture
def counter(monkeypatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled; forward and backward pass are traced, but no C++ is made of them."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=counter, **options))
    compiled = (sitenet._compiled_local, level.compiled_score_terms)
    for function in compiled:
        function.cache_clear()
    yield counter
    for function in compiled:
        function.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The network and the critic, each with gradient; the network for false samples and the critic in validation
        # without.
        ("sitenet", {"first step": 3, "first validation": 1}),
        # The critics alone.
        ("cgcnn", {"first step": 1, "first validation": 1}),
    ],
)
def test_one_compilation_for_a_whole_run(name, expected, counter, batch_of) -> None:
    model = build(name, **SMALL[name])
    model.set_compile(True)
    objective = DeepInfoMax(model)
    batches = [graph(model, batch_of(names, torch.float32, sites)) for sites in (50, 1) for names in BATCHES]

    def compiled() -> int:
        # One whose tracing is begun anew, when a number turns out to be constant, is emptied.
        return sum(len(graph.graph.nodes) > 0 for graph in counter.graphs)

    objective(batches[0])["total"].backward()
    assert compiled() == expected["first step"]
    with torch.no_grad():
        objective.eval()(batches[0])
    assert compiled() == sum(expected.values())
    for batch, training, gradient in itertools.product(batches, (True, False), (True, False)):
        objective.train(training)
        with torch.set_grad_enabled(gradient):
            total = objective(batch)["total"]
            model.readout(batch, "full")
        if gradient:
            total.backward()
        assert compiled() == sum(expected.values()), (batch.ptr, training, gradient)


def graph(model: Encoder, batch):
    # Site-Net takes the dense pairs that the batch has, of supercells of any size.
    return batch if model.name == "sitenet" else model.graph(batch)
