from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyg_dim import record
from pyg_dim.models.alignn import ALIGNN
from pyg_dim.models.batch_norm import BatchNorm
from pyg_dim.models.edge_gated import EdgeGatedConvolution, GatedGraph
from pyg_dim.objectives.deep_infomax import DeepInfoMax

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
SMALL = {
    "alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 8, "embedding_channels": 6, "crystal_channels": 10,
    "edge_gaussians": 12, "angle_gaussians": 7, "k": 4, "tolerance": None,
}  # fmt: skip


@pytest.fixture
def model(settle) -> ALIGNN:
    return settle(ALIGNN(**SMALL).double())


@pytest.fixture
def batch(model, batch_of):
    return model.graph(batch_of(NAMES))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def normalise(norm: BatchNorm, rows: list[Tensor]) -> list[Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean = sum(rows) / len(rows)
        variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [(row - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias for row in rows]


def silu(row: Tensor) -> Tensor:
    return row / (1 + (-row).exp())


def affine(layer: nn.Linear, row: Tensor) -> Tensor:
    return layer.weight @ row + layer.bias


def convolved(layer: EdgeGatedConvolution, x, y, source, target) -> tuple[list[Tensor], list[Tensor]]:
    """Node by node and edge by edge, as the formula stands."""
    gates = [
        affine(layer.source_gate, x[s]) + affine(layer.target_gate, x[i]) + affine(layer.edge_gate, y_e)
        for s, i, y_e in zip(source, target, y, strict=True)
    ]
    sums = []
    for i in range(len(x)):
        mine = [e for e in range(len(y)) if target[e] == i]
        weights = [1 / (1 + (-gates[e]).exp()) for e in mine]
        messages = [w * affine(layer.message, x[source[e]]) for w, e in zip(weights, mine, strict=True)]
        mean = sum(messages, torch.zeros_like(x[i])) / (sum(weights, torch.zeros_like(x[i])) + 1e-6)
        sums.append(affine(layer.own, x[i]) + mean)
    nodes = [x_i + silu(row) for x_i, row in zip(x, normalise(layer.node_norm, sums), strict=True)]
    if layer.edge_norm is None:
        return nodes, []
    return nodes, [y_e + silu(row) for y_e, row in zip(y, normalise(layer.edge_norm, gates), strict=True)]


def embedded(chain, rows: list[Tensor]) -> list[Tensor]:
    for block in chain if isinstance(chain, nn.Sequential) else [chain]:
        rows = [silu(row) for row in normalise(block.norm, [affine(block.linear, row) for row in rows])]
    return rows


@pytest.mark.parametrize("update_edges", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_convolution_written_out(settle, training, update_edges) -> None:
    """One node without edges."""
    layer = settle(EdgeGatedConvolution(5, update_edges).double()).train(training)
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    source, target = torch.randint(4, (11,)), torch.randint(3, (11,)).sort().values
    expected = convolved(deepcopy(layer), x, y, source.tolist(), target.tolist())
    nodes, edges = layer(x, y, GatedGraph(source, target))
    close(nodes, torch.stack(expected[0]))
    assert (edges is None) == (not update_edges)
    if update_edges:
        close(edges, torch.stack(expected[1]))


def test_convolution_takes_a_graph_without_edges() -> None:
    layer = EdgeGatedConvolution(4)
    none = torch.zeros(0, dtype=torch.long)
    nodes, edges = layer(torch.randn(2, 4), torch.zeros(0, 4), GatedGraph(none, none))
    assert nodes.isfinite().all()
    assert edges.shape == (0, 4)


@pytest.mark.parametrize("training", [True, False])
def test_representation_written_out(model, batch_of, training) -> None:
    """From distances and cosines to the crystal, in plain loops."""
    model.train(training)
    batch = model.graph(batch_of(["NaCl", "Cu"]))
    plain = deepcopy(model)

    def expand(value: Tensor, first: float, last: float, number: int) -> Tensor:
        step = (last - first) / (number - 1)
        return torch.stack([(-((value - (first + n * step)) ** 2) / step).exp() for n in range(number)])

    scaled = (batch.x - plain.site_input.feature_mean) / plain.site_input.feature_spread
    x = embedded(plain.embed_site, list(scaled))
    y = embedded(plain.embed_edge, [expand(d, 0, 8, 12) for d in batch.edge_dist])
    z = embedded(plain.embed_angle, [expand(c, -1, 1, 7) for c in batch.line_cos])
    edges, lines = batch.edge_index.tolist(), batch.line_index.tolist()
    for layer in plain.alignn_layers:
        x, y = convolved(layer.over_edges, x, y, *edges)
        y, z = convolved(layer.over_angles, y, z, *lines)
    for layer in plain.gcn_layers:
        x, y = convolved(layer, x, y, *edges)
    hidden = torch.stack([sum(x[:2]) / 2, x[2]])
    out = model.represent(batch)
    close(out.site, torch.stack(x), 1e-11)
    close(out.hidden, hidden, 1e-11)
    close(out.crystal, hidden @ plain.output.weight.T + plain.output.bias, 1e-11)


def test_levels_see_what_was_there_before_the_layer(model, batch) -> None:
    inputs = []
    for module in model.modules():
        if isinstance(module, EdgeGatedConvolution):
            module.register_forward_hook(lambda _, args, out: inputs.append((args, out)))
    with record(model, batch) as tape:
        out = model.represent(batch)
    distance, angle = model.expand_distance(batch.edge_dist), model.expand_angle(batch.line_cos)
    (source, target), (first, second) = batch.edge_index, batch.line_index
    names = ["site_levels.0", "edge_levels.0", "site_levels.1", "edge_levels.1", "site_levels.2", "site_levels.3"]
    assert [r.name for r in tape.records] == [*names, "global_level"]
    for level, (_, (z, _)) in zip(tape.records, inputs, strict=False):
        assert level.z.equal(z)
        assert level.scope == level.name.split("_")[0]
        assert level.index.equal(target if level.scope == "site" else second)
        assert not level.constituents.dense().requires_grad
    sites = [args[0] for args, _ in inputs if args[2].source.equal(source)]
    assert len(sites) == 4
    for level in (r for r in tape.records if r.scope == "site"):
        x = sites[int(level.name[-1])]
        assert level.constituents.dense().equal(torch.cat([x[source], distance], dim=1))
    for level in (r for r in tape.records if r.scope == "edge"):
        x = sites[int(level.name[-1])]
        assert level.constituents.dense().equal(torch.cat([x[source[first]], distance[first], angle], dim=1))
        features, index = level.constituents.parts[0]
        assert features.equal(x)  # sites, gathered: what masks false samples goes by it
        assert index.equal(source[first])
    readout = tape.records[-1]
    assert readout.constituents.dense().equal(out.site)
    assert readout.z.equal(out.crystal)
    assert readout.hidden.equal(out.hidden)
    assert readout.scope == "crystal"


def _with_gradient(model: nn.Module) -> set[str]:
    """Parts of the model whose parameters have a gradient."""
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-12:
            first, number, *rest = name.split(".")
            if "layers" in first:
                over = rest[0] if first == "alignn_layers" else ""
                part = "edge_norm" if "edge_norm" in rest else "nodes"
                found.add(" ".join(filter(None, [first, number, over, part])))
            else:
                found.add(f"{first}.{number}" if "levels" in first else first)
    return found


def test_levels_are_isolated(batch, generator) -> None:
    """What each level trains. The norm that ends the features of edges belongs to the level that first sees them."""
    model = ALIGNN(**SMALL).double()
    reached = []
    for level in range(7):
        model.zero_grad()
        with record(model, batch, isolate=True) as tape:
            model(batch)
        tape.records = tape.records[level : level + 1]
        tape.loss(generator=generator).backward()
        reached.append(_with_gradient(model))
    layer, gcn = "alignn_layers {} {}", "gcn_layers {} {}"
    assert reached == [
        {"embed_site", "embed_edge", layer.format(0, "over_edges nodes"), "site_levels.0"},
        {
            "embed_angle",
            layer.format(0, "over_edges edge_norm"),
            layer.format(0, "over_angles nodes"),
            "edge_levels.0",
        },
        {layer.format(1, "over_edges nodes"), "site_levels.1"},
        {
            layer.format(0, "over_angles edge_norm"),
            layer.format(1, "over_edges edge_norm"),
            layer.format(1, "over_angles nodes"),
            "edge_levels.1",
        },
        {gcn.format(0, "nodes"), "site_levels.2"},
        {gcn.format(0, "edge_norm"), gcn.format(1, "nodes"), "site_levels.3"},
        {"output", "global_level"},
    ]


def test_what_nobody_reads_does_not_exist(model) -> None:
    assert model.alignn_layers[0].over_angles.edge_norm is not None
    assert model.alignn_layers[1].over_angles.edge_norm is None
    assert model.gcn_layers[0].edge_norm is not None
    assert model.gcn_layers[1].edge_norm is None


def test_kinds_of_each_level(batch, generator) -> None:
    """An edge has no counterpart in the donor: no polymorphs there."""
    losses = DeepInfoMax(ALIGNN(**SMALL).double())(batch, generator)
    for level, kinds in {
        "site_levels.3": {"other", "composition", "polymorph"},
        "edge_levels.1": {"other", "composition"},
        "global_level": {"other", "composition", "polymorph", "permutation"},
    }.items():
        assert all(losses[f"detail/{level}/{kind}/coverage"] > 0 for kind in kinds)
    assert "detail/edge_levels.1/polymorph" not in losses


def test_a_batch_without_a_line_graph_is_refused(model, batch_of) -> None:
    with pytest.raises(ValueError, match=r"add its edges with encoder\.graph, or with LineGraph"):
        model(model.graph.graph(batch_of(NAMES)))


def test_published_defaults() -> None:
    model = ALIGNN()
    assert (len(model.alignn_layers), len(model.gcn_layers)) == (4, 4)
    neighbors = "NearestNeighbors(k=12, cutoff=8.0, pad=False, ties=True, symmetric=True)"
    assert repr(model.graph) == f"SymmetryClasses(LineGraph({neighbors}), tolerance=1e-05)"
    assert repr(ALIGNN(tolerance=None).graph) == f"LineGraph({neighbors})"
    assert model.expand_distance(torch.zeros(3)).shape == (3, 80)
    assert model.expand_angle(torch.zeros(3)).shape == (3, 40)
    assert model.embed_edge[0].linear.out_features == 64
    assert model.channels == model.output.out_features == 128
    assert model.site_levels[-1].channels == 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignn_layers": 0}, "alignn_layers must be at least 1, not 0"),
        ({"gcn_layers": 0}, "gcn_layers must be at least 1"),
        ({"hidden_channels": 0}, "hidden_channels must be at least 1"),
        ({"crystal_channels": -1}, "crystal_channels must be at least 1"),
        ({"edge_gaussians": 1}, "edge_gaussians must be at least 2, not 1"),
        ({"angle_gaussians": 1}, "angle_gaussians must be at least 2"),
        ({"k": 0}, "k must be at least 1"),
        ({"species_channels": 0}, "species_channels must be at least 1"),
        ({"cutoff": 0.0}, "cutoff must be a positive length"),
        ({"cutoff": float("inf")}, "cutoff must be a positive length"),
        ({"noise": "loud"}, "unknown noise 'loud'"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        ALIGNN(**options)


@pytest.mark.parametrize("training", [True, False])
def test_equals_are_computed_once_with_the_numbers_of_all(model, batch_of, crystals, training) -> None:
    """Values, gradients and running statistics; crystals of high symmetry and of none, one without edges."""
    lonely = replace(crystals["Cu"], cell=30 * np.eye(3))
    once = ALIGNN(**(SMALL | {"tolerance": 1e-5})).double()
    once.load_state_dict(model.state_dict())
    results, rows = [], []
    for encoder in (model, once):
        batch = encoder.graph(batch_of([*NAMES, lonely]))
        hook = encoder.embed_angle.register_forward_hook(lambda _, __, out: rows.append(len(out)))
        out = encoder.train(training).represent(batch)
        hook.remove()
        (out.crystal.sum() + out.site.square().sum()).backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        results.append([out.crystal, out.hidden, out.site, *gradients.values(), *encoder.buffers()])
    assert rows[1] < 0.6 * rows[0]
    for plain, merged in zip(*results, strict=True):
        close(merged, plain, 1e-9)


def test_levels_see_all_of_the_equals(model, batch_of) -> None:
    """Isolated and joint: the losses, and the gradients that they give."""
    once = ALIGNN(**(SMALL | {"tolerance": 1e-5})).double()
    once.load_state_dict(model.state_dict())
    for isolate in (True, False):
        results = []
        for encoder in (model, once):
            encoder.train().zero_grad()
            objective = DeepInfoMax(encoder, isolate=isolate)
            torch.manual_seed(0)
            losses = objective(encoder.graph(batch_of(NAMES)), torch.Generator().manual_seed(0))
            losses["total"].backward()
            gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
            results.append((losses, gradients))
        for plain, merged in zip(*results, strict=True):
            assert plain.keys() == merged.keys()
            for name, value in plain.items():
                close(merged[name], value, 1e-9)
