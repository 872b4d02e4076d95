"""What every registered encoder must do, whatever its architecture."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyg_dim import record
from pyg_dim.level import Level
from pyg_dim.models import MODELS, Encoder, build
from pyg_dim.objectives.deep_infomax import DEFAULT_KINDS, KINDS, DeepInfoMax
from pyg_dim.objectives.supervised import Supervised

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
FEW = [["lonely"], ["lonely", "lonely"], ["Cu"], ["Cu", "Ni"], ["lonely", "Cu"], ["lonely", "NaCl"]]
TOLERANCE = 1e-9
"""Of representations that ought to be equal, in float64; their order is 1."""


@dataclass(frozen=True)
class Case:
    """What is particular about an architecture.

    Attributes:
        options: a small one.
        whole_shells: options with which its graph does not depend on the order of sites.
        any_cell: whether its graph does not depend on the choice of cell.
        supercells: crystals of which a supercell has the same representation.
        silent: patterns of the parameters that Deep InfoMax gives no gradient, each with the reason.
        absent: kinds of false samples that it does not have, each with the reason.
        formulas: whether it sees formulas alone, so that its local representations are of elements, not of sites, and
            crystals of one formula have the same.
        channels: length of its representation at the defaults.
    """

    options: dict[str, Any]
    whole_shells: dict[str, Any] = field(default_factory=dict)
    any_cell: bool = True
    supercells: tuple[str, ...] = tuple(NAMES)
    silent: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    formulas: bool = False
    channels: int = 128


CASES = {
    "sitenet": Case(
        {"site_channels": 8, "pair_channels": 6, "heads": 2, "blocks": 2, "local_channels": 8, "pre_pool": [8, 12],
         "post_pool": [8, 10]},
        any_cell=False,
        supercells=(),
        silent={
            r"local\.blocks\.\d\.logits\.bias": "softmax does not change when all logits do",
            r"local\.blocks\.\d\.attention\.0\.norm\.bias": "a constant on all logits too",
        },
    ),
    "cgcnn": Case(
        {"site_channels": 8, "convolutions": 2, "crystal_channels": 10, "gaussian_step": 0.8, "k": 9},
        whole_shells={"ties": True},
        silent={r"convolutions\.\d\.linear\.bias": "batch norm takes the mean away"},
    ),
    "megnet": Case(
        {"element_channels": 5, "gaussians": 20, "blocks": 2, "feature_channels": 8, "dense_hidden": [9],
         "convolution_hidden": [10, 11], "crystal_channels": 12},
        silent={r"encode_state\.linears\.0\.weight": "the state starts from zeros"},
    ),
    "alignn": Case(
        {"alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 8, "embedding_channels": 7, "crystal_channels": 12,
         "edge_gaussians": 20, "angle_gaussians": 10, "k": 6},
        silent={r"embed_\w+(\.\d)?\.linear\.bias|.*\.own\.bias": "batch norm takes the mean away"},
        # The published line graph joins no edge to itself, though an edge to an image of its own site goes on straight.
        supercells=("NaCl", "CaTiO3", "TiO2", "triclinic"),
    ),
    "roost": Case(
        {"site_channels": 8, "layers": 2, "heads": 2, "hidden_channels": 9, "trunk": [16, 12], "crystal_channels": 10,
         "element_channels": 7},
        silent={r"(messages\.\d|pool)\.gate_bias": "softmax does not change when all gates do"},
        absent={"polymorph": "a formula has no other geometry"},
        formulas=True,
        channels=256,
    ),
}  # fmt: skip


@pytest.fixture(params=sorted(CASES))
def name(request) -> str:
    return request.param


@pytest.fixture
def case(name) -> Case:
    return CASES[name]


@pytest.fixture
def model(name, case, settle) -> Encoder:
    return settle(build(name, **(case.options | case.whole_shells)).double())


@pytest.fixture
def objective(name, case) -> DeepInfoMax:
    return DeepInfoMax(build(name, **case.options).double(), KINDS)


@pytest.fixture
def crystal_of(crystals, relabelled):
    """``crystal_of(name)``: those by name, and one site in a large box, without a neighbour."""
    lonely = replace(crystals["Cu"], cell=30 * np.eye(3))
    more = {"lonely": lonely, "Ni": relabelled("Cu", [28])}
    return lambda name: more[name] if name in more else crystals[name]


@pytest.fixture
def graph_of(batch_of, crystal_of):
    """``graph_of(model, crystals)``: a batch of crystals, by name or as they are, with the edges of a model."""

    def make(model: Encoder, crystals: list, dtype: torch.dtype = torch.float64):
        return model.graph(batch_of([crystal_of(c) if isinstance(c, str) else c for c in crystals], dtype))

    return make


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def equal_crystals(model: Encoder, graph_of, first: list, second: list) -> None:
    a, b = (model.readout(graph_of(model, crystals), "full") for crystals in (first, second))
    close(a, b)


def rotation() -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def silent(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12}


def matched(names: set[str], patterns: dict[str, str]) -> set[str]:
    return {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}


def test_all_are_here() -> None:
    assert CASES.keys() == MODELS.keys()
    with pytest.raises(ValueError, match=f"unknown model 'schnet'; known: {', '.join(sorted(CASES))}"):
        build("schnet")


def test_site_order(case, model, graph_of, crystal_of) -> None:
    rng = np.random.default_rng(0)
    crystals = [crystal_of(n) for n in NAMES]
    orders = [rng.permutation(len(c.z)) for c in crystals]
    shuffled = [replace(c, z=c.z[o], fractional=c.fractional[o]) for c, o in zip(crystals, orders, strict=True)]
    equal_crystals(model, graph_of, crystals, shuffled)
    if case.formulas:
        return  # its elements are in their own order
    first = np.cumsum([0] + [len(o) for o in orders[:-1]])
    rows = np.concatenate([f + o for f, o in zip(first, orders, strict=True)])
    close(model.represent(graph_of(model, crystals)).site[rows], model.represent(graph_of(model, shuffled)).site)


def test_origin_and_lattice_translations(model, graph_of, crystal_of) -> None:
    crystals = [crystal_of(n) for n in NAMES]
    moved = [
        replace(c, fractional=c.fractional + [0.31, -0.17, 0.44] + np.arange(len(c.z))[:, None] * [1, -2, 0])
        for c in crystals
    ]
    equal_crystals(model, graph_of, crystals, moved)


@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_reflection(model, graph_of, crystal_of, mirror: bool) -> None:
    q = rotation()
    q = q * np.linalg.det(q) * (-1 if mirror else 1)
    crystals = [crystal_of(n) for n in NAMES]
    equal_crystals(model, graph_of, crystals, [replace(c, cell=c.cell @ q) for c in crystals])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.any_cell])
def test_choice_of_cell(model, graph_of, crystal_of) -> None:
    shear = np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]])
    crystals = [crystal_of(n) for n in NAMES]
    sheared = [replace(c, cell=shear @ c.cell, fractional=c.fractional @ np.linalg.inv(shear)) for c in crystals]
    equal_crystals(model, graph_of, crystals, sheared)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.supercells])
def test_a_supercell_is_the_same_crystal(case, model, graph_of, crystal_of) -> None:
    crystals = [crystal_of(n) for n in case.supercells]
    doubled = [
        replace(
            c,
            cell=c.cell * [[1], [2], [1]],
            fractional=np.concatenate([c.fractional, c.fractional + np.array([0, 1, 0])]) / [1, 2, 1],
            z=np.concatenate([c.z, c.z]),
        )
        for c in crystals
    ]
    equal_crystals(model, graph_of, crystals, doubled)


def test_batched_equals_one_by_one(model, graph_of) -> None:
    every = [*NAMES, "lonely", "Ni"]
    together = model.readout(graph_of(model, every), "full")
    close(together, torch.cat([model.readout(graph_of(model, [c]), "full") for c in every]))
    close(together, model.readout(graph_of(model, every[::-1]), "full").flip(0))


def test_readouts(model, graph_of) -> None:
    batch = graph_of(model, ["triclinic", "Cu"])
    out, full = model.represent(batch), model.readout(batch, "full")
    assert out.crystal.shape == (2, model.channels)
    assert model.readout(batch).equal(out.crystal)
    assert model(batch).equal(out.crystal)
    mine = out.site[batch.batch == 0]
    statistics = [mine.mean(0), mine.std(0, correction=0), mine.amin(0), mine.amax(0)]
    close(full[0], torch.cat([out.crystal[0], out.hidden[0], *statistics]))
    with pytest.raises(ValueError, match="global, full"):
        model.readout(batch, "local")


def test_crystals_differ(case, model, graph_of) -> None:
    """Representations tell species and geometry: nothing above is fulfilled by a constant."""
    vectors = model(graph_of(model, ["NaCl", "ZnS", "Cu", "Ni", *(["CaTiO3"] if case.formulas else ["lonely"])]))
    assert torch.pdist(vectors).min() > 1e-4


def test_config_and_state_make_an_equal_encoder(model, graph_of, tmp_path) -> None:
    torch.save({"config": model.config, "state": model.state_dict()}, tmp_path / "encoder.pt")
    saved = torch.load(tmp_path / "encoder.pt", weights_only=True)
    twin = build(model.name, **saved["config"]).double().eval()
    twin.load_state_dict(saved["state"])
    batch = graph_of(model, NAMES)
    assert twin(batch).equal(model(batch))
    assert twin.config == model.config
    assert repr(twin.graph) == repr(model.graph)
    assert repr(deepcopy(model)) == repr(model)


def test_defaults(name, case, graph_of) -> None:
    model = build(name)
    assert model.channels == case.channels
    assert model(graph_of(model, ["NaCl"], torch.float32)).shape == (1, case.channels)
    assert model.name == name
    assert model.source


def test_options_of_the_levels(name, case, graph_of, generator) -> None:
    options = {"critic": "bilinear", "estimator": "info_nce", "noise": "learned", "kl": "paper"}
    model = build(name, **case.options, **options).double()
    levels = [m for m in model.modules() if isinstance(m, Level)]
    assert {type(level.critic).__name__ for level in levels} == {"BilinearCritic"}
    assert {type(level.noise).__name__ for level in levels} == {"LearnedNoise"}
    assert {level.kl for level in levels} == {"paper"}
    losses = DeepInfoMax(model)(graph_of(model, NAMES), generator)
    assert losses["total"].isfinite()
    assert {"nce/local", "nce/global"} <= losses.keys()
    for option, message in (("noise", "unknown noise"), ("kl", "unknown KL form"), ("critic", "unknown critic")):
        with pytest.raises(ValueError, match=message):
            build(name, **{option: "loud"})
    with pytest.raises(ValueError, match=f"'{name}'.*no_such_option"):
        build(name, no_such_option=1)


def test_losses_have_the_same_names_for_all(objective, graph_of, generator) -> None:
    losses = objective(graph_of(objective.encoder, NAMES), generator)
    assert {"total", "js/local", "js/global", "kl/local", "kl/global"} <= losses.keys()
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_alone(name, case, kind, graph_of, generator) -> None:
    """Finite in value and gradient, possible somewhere, and at no level where it has no meaning."""
    objective = DeepInfoMax(build(name, **case.options).double(), (kind,))
    if kind in case.absent:
        with pytest.raises(ValueError, match=f"no false samples of the kind {kind}: take 'other', too"):
            objective(graph_of(objective.encoder, NAMES), generator)
        return
    losses = objective(graph_of(objective.encoder, NAMES), generator)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    levels = {n: m.scope for n, m in objective.encoder.named_modules() if isinstance(m, Level)}
    meant = {
        "other": {"edge", "site", "crystal"},
        "composition": {"edge", "site", "crystal"},
        "polymorph": {"site", "crystal"},
        "permutation": {"crystal"},
        "unconnected": {"site"},
    }[kind]
    for level, scope in levels.items():
        coverage = losses.get(f"detail/{level}/{kind}/coverage")
        assert (coverage is not None) == (scope in meant), level
        assert coverage is None or coverage > 0, level


@pytest.mark.parametrize("names", FEW, ids="+".join)
def test_crystals_of_few_edges(name, case, names, graph_of, generator) -> None:
    objective = DeepInfoMax(build(name, **case.options).double())
    batch = graph_of(objective.encoder, names)
    losses = objective(batch, generator)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert all(value.isfinite().all() for value in objective.state_dict().values())
    objective.eval()
    assert objective.encoder.readout(batch, "full").isfinite().all()


@pytest.mark.parametrize("isolate", [True, False])
def test_every_parameter_learns(name, case, isolate, graph_of, generator) -> None:
    objective = DeepInfoMax(build(name, **case.options).double(), isolate=isolate)
    objective(graph_of(objective.encoder, NAMES), generator)["total"].backward()
    found = silent(objective.encoder)
    assert found == matched({n for n, _ in objective.encoder.named_parameters()}, case.silent)


def test_labels_reach_every_parameter_but_those_of_the_levels(name, case, graph_of) -> None:
    objective = Supervised(build(name, **case.options), ["y"]).double()
    batch = graph_of(objective.encoder, NAMES)
    batch.y = torch.randn(len(NAMES), 1, dtype=torch.float64)
    objective(batch)["total"].backward()
    names = {n for n, _ in objective.encoder.named_parameters()}
    levels = tuple(f"{n}." for n, m in objective.encoder.named_modules() if isinstance(m, Level))
    expected = {n for n in names if n.startswith(levels)} | matched(names, case.silent)
    assert silent(objective.encoder) == expected


def test_levels_are_isolated(objective, graph_of, generator) -> None:
    """No parameter learns from two levels."""
    model = objective.encoder
    batch = graph_of(model, NAMES)
    owner: dict[str, str] = {}
    number = sum(isinstance(m, Level) for m in model.modules())
    for level in range(number):
        model.zero_grad()
        with record(model, batch, isolate=True) as tape:
            model(batch)
        assert len(tape.records) == number
        tape.records = tape.records[level : level + 1]
        tape.loss(generator=generator).backward()
        mine = {n for n, _ in model.named_parameters()} - silent(model)
        assert any(n.startswith(tape.records[0].name) for n in mine)
        shared = {n: (owner[n], tape.records[0].name) for n in mine if n in owner}
        assert not shared
        owner |= dict.fromkeys(mine, tape.records[0].name)


def test_recording_changes_nothing(model, graph_of) -> None:
    batch = graph_of(model, NAMES)
    expected = model.readout(batch, "full")
    for isolate in (False, True):
        with record(model, batch, isolate=isolate):
            assert model.readout(batch, "full").equal(expected)


def test_corrupted_passes_leave_buffers_as_they_were(objective, graph_of, generator) -> None:
    batch = graph_of(objective.encoder, NAMES)
    alone = deepcopy(objective.encoder)
    objective(batch, generator)["total"].backward()
    alone(batch)
    after = dict(objective.encoder.named_buffers())
    assert all(after[n].equal(value) for n, value in alone.named_buffers())


def test_a_batch_is_left_as_it_was(objective, graph_of, generator) -> None:
    batch = graph_of(objective.encoder, NAMES)
    before = deepcopy(batch)
    objective(batch, generator)["total"].backward()
    assert batch.keys() == before.keys()
    assert all(batch[key].equal(before[key]) for key in batch.keys() if isinstance(batch[key], Tensor))  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_everything_follows_the_dtype(name, case, dtype, graph_of, generator) -> None:
    objective = DeepInfoMax(build(name, **case.options).to(dtype))
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    batch = graph_of(objective.encoder, NAMES, wide).apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
    assert objective.encoder(batch).dtype == dtype
    losses = objective(batch, generator)
    losses["total"].backward()
    assert losses["total"].dtype == wide  # sums are taken in float32 at least
    assert all(value.isfinite() for value in losses.values())
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients)


def test_single_precision_stays_close(model, graph_of) -> None:
    expected = model(graph_of(model, NAMES))
    close(model.float()(graph_of(model, NAMES, torch.float32)).double(), expected, 1e-4)


class HalfSums(TorchDispatchMode):
    """Operators that add up numbers of half precision in half precision, or round what they added up to it."""

    SUMS = ("index_add", "add_rows", "scatter", "index_put", "sum", "mean", "softmax", "norm", "var")
    EXACT = ("native_layer_norm", "native_batch_norm")  # in float32 inside

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        half = any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in args)
        if half and name not in self.EXACT and any(part in name for part in self.SUMS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_bfloat16_autocast_stays_close(name, case, graph_of) -> None:
    """1 % in the loss, 5 % in the gradient; all sums are taken in float32."""
    objective = DeepInfoMax(build(name, **case.options, noise="none"), DEFAULT_KINDS)
    batch = graph_of(objective.encoder, NAMES, torch.float32)
    results = []
    for enabled in (False, True):
        objective.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), HalfSums() as sums:
            losses = objective(batch, torch.Generator().manual_seed(0))
        losses["total"].backward()
        assert {value.dtype for value in losses.values()} == {torch.float32}
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
        results.append((losses["total"].detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    # The dot product of a query with the members of a set is an elementwise product and a sum over channels.
    assert set(sums.found) <= ({"aten.sum.dim_IntList"} if name == "megnet" else set())
    (full, gradient), (half, half_gradient) = results
    assert (half - full).abs() < 0.01 * full
    assert (half_gradient - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("switch", ["set_kernels", "set_compile"])
def test_fused_steps_equal_plain_ones_in_value_and_gradient(name, case, switch, training, graph_of) -> None:
    if switch == "set_compile" and MODELS[name].set_compile is Encoder.set_compile:
        pytest.skip("nothing is compiled in this encoder")
    torch._dynamo.reset()
    model = build(name, **case.options).double()
    objective = DeepInfoMax(model).train(training)
    batches = [graph_of(model, names) for names in (NAMES, NAMES[:3], NAMES[2:])]
    initial = deepcopy(objective.state_dict())
    results = []
    for enabled in (False, True):
        getattr(model, switch)(enabled)
        objective.load_state_dict(initial)
        objective.zero_grad()
        torch.manual_seed(0)
        losses = [objective(batch, torch.Generator().manual_seed(0))["total"] for batch in batches]
        sum(losses).backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        buffers = [b.clone() for b in model.buffers() if b.is_floating_point()]
        results.append([torch.stack(losses).detach(), *grads, *buffers])
    for plain, fused in zip(*results, strict=True):
        close(fused, plain)


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_encoder_equals_the_eager_one(name, case, training, graph_of) -> None:
    """As a user compiles it; the back end traces forward and backward pass and leaves out the C++ compiler."""
    torch._dynamo.reset()
    model = build(name, **case.options).double().train(training)
    batches = [graph_of(model, names) for names in (NAMES, NAMES[:4])]
    initial = deepcopy(model.state_dict())
    results = []
    for run in (model, torch.compile(model, backend="aot_eager", dynamic=True)):
        model.load_state_dict(initial)
        model.zero_grad()
        vectors = torch.cat([run(batch) for batch in batches])
        vectors.square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        buffers = [b.clone() for b in model.buffers() if b.is_floating_point()]
        results.append([vectors.detach(), *grads, *buffers])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for eager, compiled in zip(*results, strict=True):
        close(compiled, eager)


def test_the_same_seed_gives_the_same_training(name, case, graph_of) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        objective = DeepInfoMax(build(name, **case.options))
        optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-3)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            batch = graph_of(objective.encoder, NAMES, torch.float32)
            optimiser.zero_grad()
            objective(batch, generator)["total"].backward()
            optimiser.step()
        states.append(objective.state_dict())
    assert all(value.equal(states[1][n]) for n, value in states[0].items())
    assert not all(value.equal(states[2][n]) for n, value in states[0].items())
