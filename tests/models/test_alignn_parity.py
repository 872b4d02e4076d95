"""Numbers of the original authors' program, float64 (see ../shared/fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.line_graph import LineGraph
from pyg_dim.models.alignn import ALIGNN
from pyg_dim.models.encoder import Representation

FIXTURE = Path(__file__).parents[2] / "../shared/fixtures/alignn_classic.npz"
pytestmark = pytest.mark.skipif(not FIXTURE.exists(), reason="needs the authors' numbers in ../shared/fixtures")

# Ours on the left, theirs on the right.
CONVOLUTION = {
    "source_gate": "src_gate", "target_gate": "dst_gate", "edge_gate": "edge_gate", "own": "src_update",
    "message": "dst_update", "node_norm": "bn_nodes", "edge_norm": "bn_edges",
}  # fmt: skip
LAYERS = (
    {"embed_site.linear": "atom_embedding.layer.0", "embed_site.norm": "atom_embedding.layer.1"}
    | {
        f"embed_{ours}.{n}.{layer}": f"{theirs}_embedding.{n + 1}.layer.{m}"
        for ours, theirs in {"edge": "edge", "angle": "angle"}.items()
        for n in (0, 1)
        for m, layer in enumerate(("linear", "norm"))
    }
    | {
        f"alignn_layers.{n}.{ours}.{a}": f"alignn_layers.{n}.{theirs}.{b}"
        for n in (0, 1)
        for ours, theirs in {"over_edges": "node_update", "over_angles": "edge_update"}.items()
        for a, b in CONVOLUTION.items()
    }
    | {f"gcn_layers.{n}.{a}": f"gcn_layers.{n}.{b}" for n in (0, 1) for a, b in CONVOLUTION.items()}
)
UNUSED = {"alignn_layers.1.over_angles.edge_norm", "gcn_layers.1.edge_norm"}
"""Theirs compute features of angles and edges that nothing reads; ours do not have the norms of those. Their running
statistics move in training, and nothing else can tell."""
PARTS = ("weight", "bias", "running_mean", "running_var")
TOLERANCE = 1e-9


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


class Theirs:
    """Six structures with their graphs, and what the authors' program made of them."""

    def __init__(self) -> None:
        with np.load(FIXTURE, allow_pickle=False) as file:
            self.values = {name: file[name] for name in file.files}

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(np.asarray(self.values[key]))
        return value if value.is_floating_point() else value.long()

    def rows(self, key: str, structure: int) -> Tensor:
        kind = {"edge": "edge_ptr", "lg": "lg_ptr"}.get(key.split("_")[0], "node_ptr")
        first, last = self[kind][structure : structure + 2]
        return self[key][first:last]

    def edges(self, structure: int) -> tuple[Tensor, Tensor]:
        """[2, E] sites of the edges and [E, 3] their vectors, sorted by target."""
        pairs = torch.stack([self.rows("edge_src", structure), self.rows("edge_dst", structure)])
        order = pairs[1].argsort(stable=True)
        return pairs[:, order], self.rows("edge_r", structure)[order]

    def batch(self, structures: range) -> CrystalBatch:
        """Structures with the edges of the fixture, and the line graph of these."""
        edges = [self.edges(s) for s in structures]
        ptr = torch.tensor([0, *(len(self.rows("Z", s)) for s in structures)]).cumsum(0)
        index = torch.cat([pairs + first for (pairs, _), first in zip(edges, ptr, strict=False)], dim=1)
        return LineGraph(lambda batch: batch)(with_vectors(
            torch.cat([vectors for _, vectors in edges]),
            CrystalBatch(
                # One number for each site: the fixture has features of sites, not of elements.
                z=torch.cat([torch.arange(int(self["node_ptr"][s]), int(self["node_ptr"][s + 1])) for s in structures]),
                edge_index=index,
                ptr=ptr,
                batch=torch.repeat_interleave(ptr.diff()),
            ),
        ))  # fmt: skip


def with_vectors(vectors: Tensor, batch: CrystalBatch) -> CrystalBatch:
    """Edges with given vectors, as ``edge_vectors`` finds them: all sites lie at the origin of unit cells, far images.

    Args:
        vectors: [E, 3] from source to target.
        batch: changed in place.
    """
    batch.edge_shift = -vectors
    batch.pos = torch.zeros(int(batch.ptr[-1]), 3, dtype=torch.float64)
    batch.cell = torch.eye(3, dtype=torch.float64).expand(batch.num_graphs, 3, 3)
    batch.edge_dist = vectors.norm(dim=1)
    return batch


class WithHead(nn.Module):
    """The encoder with the layer that reads a prediction from the mean over sites."""

    def __init__(self, encoder: ALIGNN) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config["hidden_channels"], 1)

    def forward(self, batch: CrystalBatch) -> Tensor:
        out: Representation = self.encoder.represent(batch)
        return self.head(out.hidden)[:, 0]


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return Theirs()


@pytest.fixture
def model(theirs) -> WithHead:
    encoder = ALIGNN(alignn_layers=2, gcn_layers=2, hidden_channels=64, species_channels=92, tolerance=None)
    model = WithHead(encoder.double()).double()
    state = model.state_dict()
    for ours, layer in LAYERS.items():
        if ours not in UNUSED:
            for part in PARTS if "norm" in ours else PARTS[:2]:
                state[f"encoder.{ours}.{part}"] = theirs[f"w/{layer}.{part}"]
    state |= {f"head.{part}": theirs[f"w/fc.{part}"] for part in PARTS[:2]}
    features = theirs["atom_features"].double()
    state["encoder.site_input.species"][: len(features)] = features
    model.load_state_dict(state)
    return model.eval()


def ours_named(model: WithHead) -> dict[str, str]:
    """Our names of layers by theirs, the layers without a name there (levels, the layer of the crystal) left out."""
    return {theirs: f"encoder.{ours}" for ours, theirs in LAYERS.items() if ours not in UNUSED} | {"fc": "head"}


def test_every_parameter_but_those_of_levels_and_of_the_crystal_layer_comes_from_the_fixture(model, theirs) -> None:
    named = ours_named(model).values()
    ours = {name for name, _ in model.named_parameters() if "levels" not in name and "global_level" not in name}
    assert ours == {f"{layer}.{part}" for layer in named for part in PARTS[:2]} | {
        f"encoder.output.{part}" for part in PARTS[:2]
    }
    known = {f"w/{layer}.{part}" for layer in ours_named(model) for part in PARTS}
    left = {name for name in theirs.values if name.startswith("w/")} - known
    unused = {f"w/{LAYERS[layer]}.{part}" for layer in UNUSED for part in PARTS}
    assert unused <= left
    assert {name.split(".")[-1] for name in left - unused} == {"num_batches_tracked", "centers"}


def test_gaussians(model, theirs) -> None:
    encoder = model.encoder
    for s in theirs["inter_structs"].tolist():
        close(encoder.expand_distance(theirs.rows("edge_r", s).norm(dim=1)), theirs[f"inter/{s}/edge_rbf"], 1e-14)
        close(encoder.expand_angle(theirs.rows("lg_cos", s)), theirs[f"inter/{s}/angle_rbf"], 1e-14)


def test_line_graph(theirs) -> None:
    """Pairs of edges as a set, each with its angle; theirs are numbered in another order."""
    for s in range(6):
        batch = theirs.batch(range(s, s + 1))
        number = theirs.rows("edge_dst", s).argsort(stable=True)
        first, second = (number[edge].tolist() for edge in batch.line_index)
        ours = dict(zip(zip(first, second, strict=True), batch.line_cos.tolist(), strict=True))
        pairs = zip(theirs.rows("lg_src", s).tolist(), theirs.rows("lg_dst", s).tolist(), strict=True)
        expected = dict(zip(pairs, theirs.rows("lg_cos", s).tolist(), strict=True))
        assert ours.keys() == expected.keys()
        assert len(ours) == batch.line_cos.numel()
        assert max(abs(ours[pair] - expected[pair]) for pair in ours) < 1e-14


@pytest.mark.parametrize("together", [True, False])
def test_predictions(model, theirs, together) -> None:
    parts = [range(6)] if together else [range(s, s + 1) for s in range(6)]
    with torch.no_grad():
        close(torch.cat([model(theirs.batch(part)) for part in parts]), theirs["out_eval"], 1e-14)


def test_stages(model, theirs) -> None:
    """What each part hands on, of one structure at a time."""
    encoder = model.encoder
    for s in theirs["inter_structs"].tolist():
        seen: dict[str, Tensor | tuple[Tensor, Tensor | None]] = {}
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name, seen=seen: seen.update({name: out}))
            for name, module in encoder.named_modules()
        ]
        batch = theirs.batch(range(s, s + 1))
        with torch.no_grad():
            out = encoder.represent(batch)
        for hook in hooks:
            hook.remove()
        order = theirs.rows("edge_dst", s).argsort(stable=True)
        place = {
            pair: n for n, pair in enumerate(zip(*(order[edge].tolist() for edge in batch.line_index), strict=True))
        }
        pairs = zip(theirs.rows("lg_src", s).tolist(), theirs.rows("lg_dst", s).tolist(), strict=True)
        angles = torch.tensor([place[pair] for pair in pairs])
        edges = order.argsort()
        whole = torch.arange(batch.num_nodes)
        checked = {"edge_rbf", "angle_rbf"}

        def check(ours: Tensor, name: str, rows: Tensor, s=s, checked=checked) -> None:
            close(ours[rows], theirs[f"inter/{s}/{name}"], 1e-13)
            checked.add(name)

        check(seen["embed_site"], "atom_embedding", whole)
        check(seen["embed_edge"], "edge_embedding", edges)
        check(seen["embed_angle"], "angle_embedding", angles)
        for n in (0, 1):
            (x, m), (y, z) = (seen[f"alignn_layers.{n}.{part}"] for part in ("over_edges", "over_angles"))
            check(x, f"alignn{n}_node_update_x", whole)
            check(x, f"alignn{n}_x", whole)
            check(m, f"alignn{n}_node_update_m", edges)
            check(y, f"alignn{n}_y", edges)
            if n == 0:
                check(z, f"alignn{n}_z", angles)
            x, y = seen[f"gcn_layers.{n}"]
            check(x, f"gcn{n}_x", whole)
            if n == 0:
                check(y, f"gcn{n}_y", edges)
        check(out.hidden, "readout", torch.arange(1))
        check(model.head(out.hidden), "fc", torch.arange(1))
        close(out.site, seen["gcn_layers.1"][0])
        close(out.crystal, encoder.output(out.hidden))
        names = {name.split("/")[2] for name in theirs.values if name.startswith(f"inter/{s}/")}
        assert names - checked == {"alignn1_z", "gcn1_y"}  # nothing reads them: not computed


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients_and_statistics(model, theirs, mode) -> None:
    """Loss, gradients and running statistics of one pass over the six structures."""
    model.train(mode == "train")
    out = model(theirs.batch(range(6)))
    close(out, theirs[f"out_{mode}"], 1e-13)
    loss = out.square().mean()
    loss.backward()
    if mode == "train":
        close(loss, theirs["loss_train"], 1e-13)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    named = ours_named(model)
    checked = 0
    for name, norm in zip(theirs.values["grad_names"].tolist(), theirs[f"grad_{mode}_l2"], strict=True):
        layer, _, part = name.rpartition(".")
        if layer in named:
            close(gradients[f"{named[layer]}.{part}"].norm(), norm)
            checked += 1
        else:
            assert layer in {LAYERS[unused] for unused in UNUSED}
    assert checked == 2 * len(named) == len(gradients) - sum(gradient is None for gradient in gradients.values())
    state, initial = model.state_dict(), {name: value for name, value in theirs.values.items() if "running" in name}
    for layer, ours in named.items():
        for part in PARTS[2:] if "norm" in ours else ():
            prefix = "w" if mode == "eval" else "w_after_train"
            close(state[f"{ours}.{part}"], torch.from_numpy(initial[f"{prefix}/{layer}.{part}"]), 1e-13)
    full = [name for name in theirs.values if name.startswith("grad_train/")]
    assert len(full) == 4
    for name in full if mode == "train" else ():
        layer, _, part = name.removeprefix("grad_train/").rpartition(".")
        close(gradients[f"{named[layer]}.{part}"], theirs[name], 1e-13)
