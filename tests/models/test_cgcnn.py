from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyg_dim import record
from pyg_dim.data.elements import MAX_Z, site_features
from pyg_dim.models import CGCNN, build
from pyg_dim.models.batch_norm import BatchNorm
from pyg_dim.models.cgcnn import GatedConvolution
from pyg_dim.objectives.deep_infomax import DeepInfoMax

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
SMALL = {"site_channels": 8, "convolutions": 2, "crystal_channels": 10, "gaussian_step": 0.8, "k": 9}


@pytest.fixture
def model(settle) -> CGCNN:
    return settle(CGCNN(**SMALL).double())


@pytest.fixture
def graph_of(batch_of):
    """``graph_of(model, crystals)``: a batch of crystals, by name or as they are, with the edges of a model."""
    return lambda model, crystals, dtype=torch.float64: model.graph(batch_of(crystals, dtype))


@pytest.fixture
def lonely(crystals):
    """One site in a large box: without a neighbour."""
    return replace(crystals["Cu"], cell=30 * np.eye(3))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_convolution_written_out(model) -> None:
    """Site by site and edge by edge, with batch norm from its definition; one site without edges."""
    layer = deepcopy(model.convolutions[0])
    x, e = torch.randn(5, 8, dtype=torch.float64), torch.rand(14, 11, dtype=torch.float64)
    source, target = torch.randint(5, (14,)), torch.randint(4, (14,)).sort().values

    def normalise(norm: BatchNorm, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        mean, variance = norm.running_mean, norm.running_var
        if norm.training:
            mean = sum(rows) / len(rows)
            variance = sum((row - mean) ** 2 for row in rows) / len(rows)
        return [(row - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias for row in rows]

    for training in (False, True):
        layer.train(training)
        messages = [
            layer.linear.weight @ torch.cat([x[i], x[j], e_ij]) + layer.linear.bias
            for i, j, e_ij in zip(target, source, e, strict=True)
        ]
        sums = [torch.zeros(8, dtype=torch.float64) for _ in x]
        for i, message in zip(target, normalise(layer.edge_norm, messages), strict=True):
            sums[i] = sums[i] + 1 / (1 + (-message[:8]).exp()) * (1 + message[8:].exp()).log()
        expected = [(1 + (x_i + s).exp()).log() for x_i, s in zip(x, normalise(layer.sum_norm, sums), strict=True)]
        close(layer(x, e, source, target), torch.stack(expected), 1e-12)


def test_representation_written_out(model, graph_of) -> None:
    batch = graph_of(model, NAMES)
    distance = [[(-(((d - 0.8 * n) / 0.8) ** 2)).exp() for n in range(11)] for d in batch.edge_dist]
    scaled = (batch.x - model.site_input.feature_mean) / model.site_input.feature_spread
    site = scaled @ model.embed_site.weight.T + model.embed_site.bias
    for convolution in model.convolutions:
        site = convolution(site, torch.tensor(distance, dtype=torch.float64), *batch.edge_index)
    hidden = torch.stack([F.softplus(site[batch.batch == c].mean(0)) for c in range(len(NAMES))])
    out = model.represent(batch)
    close(out.site, site, 1e-12)
    close(out.hidden, hidden, 1e-12)
    close(out.crystal, hidden @ model.output.weight.T + model.output.bias, 1e-12)
    assert out.crystal.min() < 0  # unbounded: the last softplus is the head's


def test_site_features_are_scaled(model) -> None:
    features = site_features(torch.arange(1, MAX_Z + 1), torch.full((MAX_Z,), 2.0), torch.float32)
    scaled = (features - model.site_input.feature_mean) / model.site_input.feature_spread
    close(scaled[:, :-1].mean(0), torch.zeros(8).double(), 1e-5)
    close(scaled[:, :-1].std(0, correction=0), torch.ones(8).double(), 1e-5)
    assert (scaled[:, -1] == 2).all()  # oxidation states are small numbers already


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_without_statistics_uses_the_running_ones(rows: int) -> None:
    norm = BatchNorm(3).double()
    norm(torch.randn(50, 3, dtype=torch.float64) * 3 + 2)
    before = deepcopy(norm.state_dict())
    x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    trained = norm(x)
    assert all(value.equal(before[name]) for name, value in norm.state_dict().items())
    close(trained, norm.eval()(x), 1e-15)
    trained.sum().backward()
    assert x.grad.isfinite().all()


def test_batch_norm_is_the_usual_one_elsewhere() -> None:
    x = torch.randn(2, 3)
    ours, plain = BatchNorm(3), nn.BatchNorm1d(3)
    assert ours(x).equal(plain(x))
    assert all(value.equal(plain.state_dict()[name]) for name, value in ours.state_dict().items())


def test_levels_see_the_message_before_the_convolution(model, graph_of) -> None:
    batch = graph_of(model, NAMES)
    inputs = []
    for convolution in model.convolutions:
        convolution.register_forward_hook(lambda _, args, out: inputs.append((args[0], args[1], out)))
    with record(model, batch) as tape:
        out = model.represent(batch)
    *local, readout = tape.records
    assert [r.name for r in tape.records] == ["convolution_levels.0", "convolution_levels.1", "global_level"]
    assert [r.scope for r in tape.records] == ["site", "site", "crystal"]
    source, target = batch.edge_index
    for level, (x, e, z) in zip(local, inputs, strict=True):
        assert level.z.equal(z)
        assert level.index.equal(target)
        assert level.constituents.dense().equal(torch.cat([x[source], e], dim=1))
        assert not level.constituents.dense().requires_grad
    assert readout.constituents.dense().equal(out.site)
    assert readout.z.equal(out.crystal)
    assert readout.hidden.equal(out.hidden)


def _with_gradient(model: nn.Module) -> set[str]:
    """First part of the names of the parameters that have a gradient, and the number where there is one."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12]
    return {".".join(n.split(".")[: 2 if "convolution" in n else 1]) for n in names}


def test_levels_are_isolated(graph_of, generator) -> None:
    model = CGCNN(**(SMALL | {"convolutions": 3})).double()
    batch = graph_of(model, NAMES)
    reached = {}
    for level in (0, 1, 2, 3):
        model.zero_grad()
        with record(model, batch, isolate=True) as tape:
            model(batch)
        tape.records = tape.records[level : level + 1]
        tape.loss(generator=generator).backward()
        reached[level] = _with_gradient(model)
    assert reached == {
        0: {"embed_site", "convolutions.0", "convolution_levels.0"},
        1: {"convolutions.1", "convolution_levels.1"},
        2: {"convolutions.2", "convolution_levels.2"},
        3: {"output", "global_level"},
    }


def test_corrupted_passes_normalise_with_their_own_statistics(graph_of, generator) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL).double())
    batch = graph_of(objective.encoder, NAMES)
    means = []
    norm = objective.encoder.convolutions[0].sum_norm
    norm.register_forward_hook(lambda _, args, out: means.append(out.mean(0).abs().max().item()))
    objective(batch, generator)
    assert len(means) == 3
    assert max(means) < 1e-12


def test_padding_is_an_option(graph_of, lonely) -> None:
    torch.manual_seed(0)
    model = CGCNN(**SMALL).double().eval()
    padded = build("cgcnn", **(model.config | {"pad": True})).double().eval()
    padded.load_state_dict(model.state_dict())
    assert graph_of(model, [lonely]).edge_dist.numel() == 0
    assert graph_of(padded, [lonely]).edge_dist.tolist() == [9.0] * 9
    assert not model(graph_of(model, [lonely])).equal(padded(graph_of(padded, [lonely])))
    assert model(graph_of(model, ["NaCl"])).equal(padded(graph_of(padded, ["NaCl"])))


def test_species_vectors_in_place_of_site_features(graph_of, relabelled) -> None:
    model = CGCNN(**SMALL, species_channels=5).double().eval()
    batch = graph_of(model, ["NaCl", relabelled("NaCl", [19, 17])])
    for training in (True, False):
        with pytest.raises(ValueError, match=r"no atom vectors .* \[11, 17, 19\]"):
            model.train(training)(batch)
    model.site_input.species.copy_(torch.randn(model.site_input.species.shape))
    seen = []
    model.embed_site.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    out = model(batch)
    assert seen[0].equal(model.site_input.species[[11, 17, 19, 17]])
    assert not out[0].equal(out[1])
    twin = build("cgcnn", **model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    assert twin(batch).equal(out)


def test_default_lengths(graph_of) -> None:
    model = build("cgcnn").double()
    out = model.represent(graph_of(model, ["NaCl", "CaF2"]))
    assert (out.crystal.shape, out.hidden.shape, out.site.shape) == ((2, 128), (2, 64), (5, 64))
    assert len(model.convolutions) == 3
    assert model.gaussians == 41
    assert repr(model.graph) == "NearestNeighbors(k=12, cutoff=8.0, pad=False, ties=False)"
    assert model.channels == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site_channels": 0}, "site_channels must be at least 1, not 0"),
        ({"convolutions": 0}, "convolutions must be at least 1"),
        ({"crystal_channels": -1}, "crystal_channels must be at least 1"),
        ({"k": 0}, "k must be at least 1"),
        ({"species_channels": 0}, "species_channels must be at least 1"),
        ({"cutoff": 0.0}, "cutoff must be a positive length"),
        ({"gaussian_step": -0.2}, "gaussian_step must be a positive length"),
        ({"noise": "loud"}, "unknown noise 'loud'"),
        ({"kl": "other"}, "unknown KL form 'other'"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build("cgcnn", **options)


def test_convolution_takes_a_graph_without_edges() -> None:
    layer = GatedConvolution(4, 3)
    none = torch.zeros(0, dtype=torch.long)
    out = layer(torch.randn(2, 4), torch.zeros(0, 3), none, none)
    assert out.isfinite().all()
