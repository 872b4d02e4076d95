"""What is MEGNet's own; test_every_model.py holds what all encoders have in common."""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.loader import DataLoader

from pyg_dim import record
from pyg_dim.data import Crystal, LineGraph, SymmetryClasses
from pyg_dim.data.batch import CrystalBatch
from pyg_dim.models import MEGNet, build
from pyg_dim.objectives.deep_infomax import KINDS, DeepInfoMax
from pyg_dim.objectives.supervised import Supervised

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
SMALL = {
    "element_channels": 5, "gaussians": 9, "blocks": 2, "feature_channels": 6, "dense_hidden": [7],
    "convolution_hidden": [8, 9], "crystal_channels": 10, "tolerance": None,
}  # fmt: skip


@pytest.fixture
def model() -> MEGNet:
    return MEGNet(**SMALL).double().eval()


@pytest.fixture
def lonely(crystals):
    """One site in a large box: without a neighbour."""
    return replace(crystals["Cu"], cell=30 * np.eye(3))


@pytest.fixture
def graph_of(batch_of):
    """``graph_of(model, crystals)``: a batch of crystals, by name or as they are, with the edges of a model."""
    return lambda model, crystals, dtype=torch.float64: model.graph(batch_of(crystals, dtype))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Plain:
    """MEGNet as its formulas tell it, in NumPy, one edge and one site at a time; of one crystal.

    Attributes:
        hidden: the vector that the representation is read from.
        crystal: the representation.
        site: the sites after the last block.
    """

    def __init__(self, model: MEGNet, batch: CrystalBatch, state: int = 0) -> None:
        self.w = {name: value.numpy() for name, value in model.state_dict().items()}
        config, z, distance = model.config, batch.z.tolist(), batch.edge_dist.numpy()
        pairs = batch.edge_index.T.tolist()
        centres = self.w["centres"]
        assert np.allclose(centres, np.linspace(0, config["cutoff"] + 1, config["gaussians"]), atol=1e-6)
        steepness = config["gaussian_steepness"]
        e = [self.layers("encode_edge", np.exp(-steepness * (d - centres) ** 2)) for d in distance]
        v = [self.layers("encode_site", self.w["embed_element.weight"][k]) for k in z]
        start = self.w["embed_fidelity.weight"][state] if config["fidelities"] else np.zeros(2)
        u = self.layers("encode_state", start)
        for b in range(config["blocks"]):
            name = f"blocks.{b}"
            E, V, U = e, v, u
            if b:
                E = [self.layers(f"{name}.dense_edge", x) for x in e]
                V = [self.layers(f"{name}.dense_site", x) for x in v]
                U = self.layers(f"{name}.dense_state", u)
            new_E = [
                self.layers(f"{name}.edge", np.concatenate([V[s], V[t], x, U]))
                for (s, t), x in zip(pairs, E, strict=True)
            ]
            coming_in = [[x for (_, t), x in zip(pairs, new_E, strict=True) if t == i] for i in range(len(z))]
            zero = np.zeros_like(u)
            messages = [np.mean(some, axis=0) if some else zero for some in coming_in]
            new_V = [self.layers(f"{name}.site", np.concatenate([x, m, U])) for x, m in zip(V, messages, strict=True)]
            mean_E = np.mean(new_E, axis=0) if new_E else zero
            new_U = self.layers(f"{name}.state", np.concatenate([U, mean_E, np.mean(new_V, axis=0)]))
            e = [x + y for x, y in zip(e, new_E, strict=True)]
            v = [x + y for x, y in zip(v, new_V, strict=True)]
            u = u + new_U
        steps = config["set2set_steps"]
        self.hidden = np.concatenate([self.set2set("read_sites", v, steps), self.set2set("read_edges", e, steps), u])
        self.crystal = self.w["output.weight"] @ self.hidden + self.w["output.bias"]
        self.site = np.stack(v)

    def layers(self, name: str, x: np.ndarray) -> np.ndarray:
        k = 0
        while f"{name}.linears.{k}.weight" in self.w:
            x = self.w[f"{name}.linears.{k}.weight"] @ x + self.w[f"{name}.linears.{k}.bias"]
            x = np.log1p(np.exp(x)) - math.log(2)
            k += 1
        return x

    def set2set(self, name: str, members: list, steps: int) -> np.ndarray:
        w = {key: self.w[f"{name}.lstm.{key}"] for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        width = w["weight_hh"].shape[1]
        q, h, c = np.zeros(2 * width), np.zeros(width), np.zeros(width)
        for _ in range(steps):
            i, f, g, o = np.split(w["weight_ih"] @ q + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"], 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            attention = np.array([np.exp(x @ h) for x in members])
            answer = sum((a / attention.sum() * x for a, x in zip(attention, members, strict=True)), np.zeros(width))
            q = np.concatenate([h, answer])
        return q


@pytest.mark.parametrize("options", [{}, {"blocks": 3, "set2set_steps": 3, "dense_hidden": [7, 5], "cutoff": 3.1}])
def test_written_out(graph_of, lonely, options) -> None:
    """In batches, as in a loop over edges; one crystal is a site without an edge."""
    model = MEGNet(**(SMALL | options)).double().eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6)
    crystals = ["NaCl", "triclinic", lonely, "TiO2"]
    with torch.no_grad():
        out = model.represent(graph_of(model, crystals))
    plain = [Plain(model, graph_of(model, [crystal])) for crystal in crystals]
    close(out.hidden, torch.from_numpy(np.stack([one.hidden for one in plain])))
    close(out.crystal, torch.from_numpy(np.stack([one.crystal for one in plain])))
    close(out.site, torch.from_numpy(np.concatenate([one.site for one in plain])))
    assert out.hidden.std(0).median() > 1e-3


def test_labels_of_the_state(graph_of) -> None:
    model = MEGNet(**SMALL, fidelities=3, fidelity_channels=4).double().eval()
    batch = graph_of(model, NAMES[:3])
    with torch.no_grad():
        none_given = model(batch)
        batch.state = torch.tensor([0, 0, 0])
        assert model(batch).equal(none_given)
        batch.state = torch.tensor([2, 0, 1])
        out = model(batch)
    for c, state in enumerate([2, 0, 1]):
        close(out[c], torch.from_numpy(Plain(model, graph_of(model, [NAMES[c]]), state).crystal))
    for wrong in ([0, 3, 5], [-1, 0, 0]):
        batch.state = torch.tensor(wrong)
        with pytest.raises(ValueError, match=r"knows the states 0 to 2; batch.state holds \[(3, 5|-1)\]"):
            model(batch)


def test_a_state_that_the_model_does_not_take_is_left_alone(model, graph_of) -> None:
    batch = graph_of(model, NAMES)
    expected = model(batch)
    batch.state = torch.full((len(NAMES),), 7)
    assert model(batch).equal(expected)


def test_no_edges_at_all(model, graph_of, lonely, generator) -> None:
    alone, twice = model.represent(graph_of(model, [lonely])), model.represent(graph_of(model, [lonely, lonely]))
    mixed = model.represent(graph_of(model, ["NaCl", lonely]))
    for out in (alone.crystal, twice.crystal[1:], mixed.crystal[1:]):
        assert out.isfinite().all()
        close(out, alone.crystal)
    losses = DeepInfoMax(model.train())(graph_of(model, ["NaCl", lonely, "Cu"]), generator)
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_what_levels_see(model, graph_of) -> None:
    batch = graph_of(model, NAMES)
    seen: dict[str, torch.Tensor] = {}
    model.encode_site.register_forward_hook(lambda _, args, out: seen.update(site=out))
    with record(model, batch) as tape:
        out = model.represent(batch)
    names = ["edge_levels.0", "site_levels.0", "state_levels.0", "edge_levels.1", "site_levels.1", "state_levels.1"]
    assert [r.name for r in tape.records] == [*names, "global_level"]
    assert [r.scope for r in tape.records] == [*["edge", "site", "crystal"] * 2, "crystal"]
    source, target = batch.edge_index
    site, distance = seen["site"], model.expand_distance(batch.edge_dist)
    for edge, node, state in (tape.records[:3], tape.records[3:6]):
        number = torch.arange(len(source))
        # The two sites of the edge, and nothing of the edge itself.
        assert edge.constituents.dense().equal(torch.cat([site[source], site[target]]))
        assert edge.index.equal(torch.cat([number, number]))
        # What comes in, by numbers that do not know where it goes.
        assert node.constituents.dense().equal(torch.cat([site[source], distance], dim=1))
        assert node.index.equal(target)
        assert state.constituents.dense().equal(node.z)
        assert state.index.equal(batch.batch)
        assert not edge.constituents.dense().requires_grad
        site = node.z
    readout = tape.records[-1]
    assert readout.constituents.dense().equal(out.site)
    assert out.site.equal(site)
    assert readout.z.equal(out.crystal)
    assert readout.hidden.equal(out.hidden)
    assert out.hidden[:, -6:].equal(tape.records[-2].z)


def test_the_distance_does_not_know_its_sites(model, graph_of, relabelled) -> None:
    """What stands for an edge among the constituents of a site depends on its length alone."""
    with record(model, first := graph_of(model, ["NaCl"])) as tape:
        model(first)
    with record(model, second := graph_of(model, [relabelled("NaCl", [19, 17])])) as other:
        model(second)
    for a, b in ((tape.records[1], other.records[1]), (tape.records[4], other.records[4])):
        assert a.constituents.dense()[:, 6:].equal(b.constituents.dense()[:, 6:])
        assert not a.constituents.dense()[:, :6].equal(b.constituents.dense()[:, :6])


@pytest.fixture
def once(model) -> MEGNet:
    """The same network, which computes what is equal once."""
    twin = MEGNet(**(SMALL | {"tolerance": 1e-5})).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6)
    twin.load_state_dict(model.state_dict())
    return twin


def test_equals_are_computed_once_with_the_numbers_of_all(model, once, graph_of, lonely) -> None:
    """Values and gradients; crystals of high symmetry and of none, some without edges."""
    results = []
    for encoder in (model, once):
        out = encoder.represent(graph_of(encoder, [lonely, *NAMES, lonely]))
        (out.crystal.sum() + out.site.square().sum()).backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append([out.crystal, out.hidden, out.site, *gradients])
    assert len(results[0]) == len(results[1]) > 40
    for plain, merged in zip(*results, strict=True):
        close(merged, plain, 1e-9)


@pytest.mark.parametrize("recorded", [True, False])
def test_no_more_rows_than_classes(once, graph_of, recorded) -> None:
    """In every layer; only what levels are given is of all sites and edges."""
    batch = graph_of(once, NAMES)
    sites, edges, crystals = batch.site_count.numel(), batch.edge_count.numel(), batch.num_graphs
    assert sites < 0.8 * batch.z.numel()
    assert edges < 0.3 * batch.edge_dist.numel()
    rows: dict[str, int] = {}
    for name, layer in once.named_modules():
        # The first layers of the networks of a block are computed in parts, without a call.
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, out, name=name: rows.update({name: len(out)}))
    with record(once, batch) if recorded else nullcontext():
        once(batch)
    assert len(rows) == 27
    for name, number in rows.items():
        of_edges, of_sites = "edge" in name, "site" in name
        assert number == (edges if of_edges else sites if of_sites else crystals), name


def test_readouts_are_given_the_classes(once, graph_of) -> None:
    batch, seen = graph_of(once, NAMES), []
    for layer in (once.read_sites, once.read_edges):
        layer.register_forward_hook(lambda _, args, out: seen.append(args))
    once(batch)
    for (x, index, _, count), expected in zip(seen, (batch.site_count, batch.edge_count), strict=True):
        assert count.equal(expected)
        assert len(x) == len(index) == len(count)


def test_levels_see_all_of_the_equals(model, once, graph_of, lonely) -> None:
    """Isolated and joint: the losses, and the gradients that they give."""
    for isolate in (True, False):
        results = []
        for encoder in (model, once):
            encoder.train().zero_grad()
            torch.manual_seed(0)
            objective = DeepInfoMax(encoder, KINDS, isolate=isolate)
            losses = objective(graph_of(encoder, [*NAMES, lonely]), torch.Generator().manual_seed(0))
            losses["total"].backward()
            gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
            results.append((losses, gradients))
        for plain, merged in zip(*results, strict=True):
            assert plain.keys() == merged.keys()
            for name, value in plain.items():
                close(merged[name], value, 1e-9)


def test_members_of_a_class_are_equal_in_the_plain_network(model, once, graph_of) -> None:
    """No class is coarser than what the network tells apart, and here none is finer."""
    with record(model, batch := graph_of(model, NAMES)) as tape:
        model(batch)
    known = once.graph(copy(batch))
    for scope, classes in (("site", known.site_class), ("edge", known.edge_class)):
        values = next(r.z for r in reversed(tape.records) if r.scope == scope)
        first = torch.stack([values[classes == number][0] for number in range(int(classes.max()) + 1)])
        close(first[classes], values, 1e-9)
        assert torch.pdist(first).min() > 1e-7


def test_classes_with_angles_serve_as_well(model, once, batch_of) -> None:
    """They are finer."""
    batch = SymmetryClasses(LineGraph(model.graph), 1e-5)(batch_of(NAMES))
    assert batch.edge_count.numel() > once.graph(batch_of(NAMES)).edge_count.numel()
    close(once(batch), model(model.graph(batch_of(NAMES))), 1e-9)


def test_crystals_that_pyg_collates(model, once, batch_of) -> None:
    alone = [once.graph(Crystal(z=one.z, pos=one.pos, cell=one.cell)) for one in (batch_of([name]) for name in NAMES)]
    batch = next(iter(DataLoader(alone, batch_size=len(NAMES))))
    close(once(batch), model(model.graph(batch_of(NAMES))), 1e-9)


def test_gradients(graph_of, lonely) -> None:
    """With respect to the lengths of edges and to the embedding, so through every skip connection."""
    model = MEGNet(**(SMALL | {"crystal_channels": 2})).double()
    batch = graph_of(model, ["NaCl", "Cu", lonely])
    number = batch.z.unique()

    def crystals(distance: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        batch.edge_dist = distance
        table = model.embed_element.weight.detach().index_copy(0, number, rows)
        return torch.func.functional_call(model, {"embed_element.weight": table}, (batch,))

    inputs = (batch.edge_dist.clone(), model.embed_element.weight[number].detach())
    assert torch.autograd.gradcheck(crystals, tuple(x.requires_grad_() for x in inputs))


def _with_gradient(model: nn.Module) -> set[str]:
    """First parts of the names of the parameters that have a gradient."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12]
    return {".".join(n.split(".")[: {"blocks": 3}.get(n.split(".")[0], 1)]) for n in names}


def test_levels_are_isolated(graph_of, generator) -> None:
    model = MEGNet(**SMALL).double()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6)
    batch = graph_of(model, NAMES)
    reached = {}
    for level in range(7):
        model.zero_grad()
        with record(model, batch, isolate=True) as tape:
            model(batch)
        tape.records = tape.records[level : level + 1]
        tape.loss(generator=generator).backward()
        reached[tape.records[0].name] = _with_gradient(model)
    encoders = {"embed_element", "encode_edge", "encode_site", "encode_state"}
    dense = {"blocks.1.dense_edge", "blocks.1.dense_site", "blocks.1.dense_state"}
    assert reached == {
        "edge_levels.0": {*encoders, "blocks.0.edge", "edge_levels"},
        "site_levels.0": {"blocks.0.site", "site_levels"},
        "state_levels.0": {"blocks.0.state", "state_levels"},
        "edge_levels.1": {*dense, "blocks.1.edge", "edge_levels"},
        "site_levels.1": {"blocks.1.site", "site_levels"},
        "state_levels.1": {"blocks.1.state", "state_levels"},
        "global_level": {"read_sites", "read_edges", "output", "global_level"},
    }


def test_labels_reach_every_parameter_but_those_of_the_levels(graph_of) -> None:
    objective = Supervised(MEGNet(**SMALL).double(), ["y"]).double()
    batch = graph_of(objective.encoder, NAMES)
    batch.y = torch.randn(len(NAMES), 1, dtype=torch.float64)
    objective(batch)["total"].backward()
    silent = {n for n, p in objective.encoder.named_parameters() if p.grad is None or not p.grad.any()}
    # The state starts from zeros, which nothing can be multiplied with.
    assert {n for n in silent if "level" not in n} == {"encode_state.linears.0.weight"}


def test_published_sizes() -> None:
    model = build("megnet")
    # 189 521 with the rest of the head; 104 elements in place of 89, and 128 numbers in place of 32.
    published = sum(p.numel() for n, p in model.named_parameters() if "level" not in n)
    assert published - (104 - 89) * 16 - (128 - 32) * 161 + (32 * 16 + 16) + (16 + 1) == 189_521
    assert repr(model.graph) == "SymmetryClasses(RadiusGraph(cutoff=4.0), tolerance=1e-05)"
    assert repr(MEGNet(tolerance=None).graph) == "RadiusGraph(cutoff=4.0)"
    assert model.centres[[0, -1]].tolist() == [0.0, 5.0]
    assert (model.channels, model.output.in_features) == (128, 160)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"element_channels": 0}, "element_channels must be at least 1, not 0"),
        ({"gaussians": 0}, "gaussians must be at least 1"),
        ({"blocks": -1}, "blocks must be at least 1"),
        ({"dense_hidden": [64, 0]}, r"dense_hidden must be at least 1, not \[64, 0\]"),
        ({"convolution_hidden": [0]}, "convolution_hidden must be at least 1"),
        ({"set2set_steps": 0}, "set2set_steps must be at least 1"),
        ({"fidelities": 0}, "fidelities must be at least 1, not 0"),
        ({"crystal_channels": 0}, "crystal_channels must be at least 1"),
        ({"cutoff": 0.0}, "cutoff must be a positive length in angstrom, not 0.0"),
        ({"gaussian_steepness": math.inf}, "gaussian_steepness must be a positive number per square angstrom"),
        ({"noise": "loud"}, "unknown noise 'loud'"),
        ({"critic": "art"}, "unknown critic 'art'"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build("megnet", **options)
