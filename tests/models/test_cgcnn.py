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
from pyg_dim.objectives.supervised import Supervised

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
SMALL = {"site_channels": 8, "convolutions": 2, "crystal_channels": 10, "gaussian_step": 0.8, "k": 9}


@pytest.fixture
def model() -> CGCNN:
    """In evaluation mode, with running statistics that are not the initial ones."""
    model = CGCNN(**SMALL).double()
    for module in model.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


@pytest.fixture
def generic(crystals) -> list:
    """The crystals with their sites moved, so that no two neighbours of a site are equally far."""
    rng = np.random.default_rng(7)
    moved = [crystals[n] for n in NAMES]
    return [replace(c, fractional=c.fractional + rng.normal(scale=0.02, size=c.fractional.shape)) for c in moved]


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


@pytest.mark.parametrize("names", [["lonely"], ["lonely", "lonely"], ["Cu"], ["lonely", "NaCl"]])
def test_training_on_crystals_of_few_edges(graph_of, lonely, generator, names) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL).double())
    batch = graph_of(objective.encoder, [lonely if n == "lonely" else n for n in names])
    losses = objective(batch, generator)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert all(value.isfinite().all() for value in objective.state_dict().values())
    objective.eval()
    assert objective.encoder(batch).isfinite().all()


def test_site_order(model, graph_of, generic) -> None:
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(c.z)) for c in generic]
    shuffled = [replace(c, z=c.z[o], fractional=c.fractional[o]) for c, o in zip(generic, orders, strict=True)]
    a, b = model.represent(graph_of(model, generic)), model.represent(graph_of(model, shuffled))
    close(a.crystal, b.crystal)
    first = np.cumsum([0] + [len(o) for o in orders[:-1]])
    close(a.site[np.concatenate([f + o for f, o in zip(first, orders, strict=True)])], b.site)


def test_origin_and_lattice_translations(model, graph_of, generic) -> None:
    moved = [
        replace(c, fractional=c.fractional + [0.31, -0.17, 0.44] + np.arange(len(c.z))[:, None] * [1, -2, 0])
        for c in generic
    ]
    close(model(graph_of(model, generic)), model(graph_of(model, moved)))


def test_rotation_and_choice_of_cell(model, graph_of, generic) -> None:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    shear = np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]])
    turned = [replace(c, cell=c.cell @ q) for c in generic]
    sheared = [replace(c, cell=shear @ c.cell, fractional=c.fractional @ np.linalg.inv(shear)) for c in generic]
    expected = model(graph_of(model, generic))
    close(model(graph_of(model, turned)), expected)
    close(model(graph_of(model, sheared)), expected)


def test_batched_equals_one_by_one(model, graph_of, lonely) -> None:
    crystals = [*NAMES, lonely]
    together = model.readout(graph_of(model, crystals), "full")
    assert together.shape == (7, 10 + 8 + 4 * 8)
    close(together, torch.cat([model.readout(graph_of(model, [c]), "full") for c in crystals]))
    close(together, model.readout(graph_of(model, crystals[::-1]), "full").flip(0))


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


def test_losses_have_the_names_of_every_architecture(graph_of, generator) -> None:
    model = CGCNN(**SMALL).double()
    losses = DeepInfoMax(model)(graph_of(model, NAMES), generator)
    local = torch.stack([losses[f"detail/convolution_levels.{k}/js"] for k in (0, 1)])
    close(losses["js/local"], local.mean())
    close(losses["js/global"], losses["detail/global_level/js"])
    assert {"kl/local", "kl/global"} <= losses.keys()
    for level, kinds in {
        "convolution_levels.1": {"other", "composition", "polymorph"},
        "global_level": {"other", "composition", "polymorph", "permutation"},
    }.items():
        assert all(losses[f"detail/{level}/{kind}/coverage"] > 0 for kind in kinds)


def test_other_classifiers(graph_of, generator) -> None:
    model = CGCNN(**SMALL, critic="bilinear", estimator="info_nce").double()
    losses = DeepInfoMax(model)(graph_of(model, NAMES), generator)
    assert losses["total"].isfinite()
    assert {"nce/local", "nce/global"} <= losses.keys()
    assert {type(level.critic).__name__ for level in (*model.convolution_levels, model.global_level)} == {
        "BilinearCritic"
    }


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


@pytest.mark.parametrize("isolate", [True, False])
def test_every_parameter_learns(graph_of, generator, isolate) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL).double(), isolate=isolate)
    objective(graph_of(objective.encoder, NAMES), generator)["total"].backward()
    # Batch norm takes the mean away: the bias before it has no gradient by construction.
    silent = {n for n, p in objective.encoder.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert silent == {"convolutions.0.linear.bias", "convolutions.1.linear.bias"}


def test_labels_reach_every_parameter_but_those_of_the_levels(graph_of) -> None:
    objective = Supervised(CGCNN(**SMALL).double(), ["y"]).double()
    batch = graph_of(objective.encoder, NAMES)
    batch.y = torch.randn(len(NAMES), 1, dtype=torch.float64)
    objective(batch)["total"].backward()
    assert _with_gradient(objective.encoder) == {"embed_site", "convolutions.0", "convolutions.1", "output"}


def test_corrupted_passes_leave_running_statistics_as_they_were(graph_of, generator) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL).double())
    batch = graph_of(objective.encoder, NAMES)
    alone = deepcopy(objective.encoder)
    initial = {name: value.clone() for name, value in alone.named_buffers()}
    objective(batch, generator)["total"].backward()
    alone(batch)
    after = dict(objective.encoder.named_buffers())
    assert len(after) == 2 * 2 * 3 + 2
    for name, value in alone.named_buffers():
        assert after[name].equal(value)
        assert value.equal(initial[name]) == name.startswith("site_input")


def test_corrupted_passes_normalise_with_their_own_statistics(graph_of, generator) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL).double())
    batch = graph_of(objective.encoder, NAMES)
    means = []
    norm = objective.encoder.convolutions[0].sum_norm
    norm.register_forward_hook(lambda _, args, out: means.append(out.mean(0).abs().max().item()))
    objective(batch, generator)
    assert len(means) == 3
    assert max(means) < 1e-12


def test_compiled_equals_eager_in_value_and_gradient(graph_of) -> None:
    model = CGCNN(**SMALL).double()
    objective = DeepInfoMax(model).eval()
    batches = [graph_of(model, names) for names in (NAMES, NAMES[:3])]
    results = []
    for compiled in (False, True):
        model.set_compile(compiled)
        objective.zero_grad()
        losses = [objective(batch, torch.Generator().manual_seed(0))["total"] for batch in batches]
        sum(losses).backward()
        results.append(
            [torch.stack(losses).detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for eager, compiled in zip(*results, strict=True):
        close(compiled, eager)


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


def test_config_makes_an_equal_encoder(model, graph_of) -> None:
    twin = build(model.name, **model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    batch = graph_of(model, NAMES)
    assert twin(batch).equal(model(batch))
    assert twin.config == model.config
    assert repr(twin.graph) == repr(model.graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_follows_the_dtype_of_the_batch(graph_of, generator, dtype: torch.dtype) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL).to(dtype))
    losses = objective(graph_of(objective.encoder, NAMES, dtype), generator)
    assert losses["total"].dtype == dtype


def test_bfloat16_autocast_stays_close(graph_of) -> None:
    objective = DeepInfoMax(CGCNN(**SMALL, noise="none"))
    batch = graph_of(objective.encoder, NAMES, torch.float32)
    full = objective(batch, torch.Generator().manual_seed(0))["total"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(batch, torch.Generator().manual_seed(0))["total"]
    assert (half - full).abs() < 0.05 * full


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
