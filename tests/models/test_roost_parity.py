"""Numbers of the published program of Huang et al. (PretrainRoost), float64 (see ../shared/fixtures/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.elements import atomic_numbers
from pyg_dim.models import Roost
from pyg_dim.models.residual import ResidualNetwork
from pyg_dim.models.weighted_attention import WeightedAttention
from pyg_dim.objectives import BarlowTwins, Supervised
from pyg_dim.objectives.barlow_twins import barlow_twins_loss, cross_correlation

SHARED = Path(__file__).parents[2] / "../shared/fixtures"
TABLE = SHARED / "matscholar200.npz"
pytestmark = pytest.mark.skipif(
    not (SHARED / "roost_full.npz").exists(), reason="needs the authors' numbers in ../shared/fixtures"
)


def stored_in(name: str) -> dict[str, np.ndarray]:
    with np.load(SHARED / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float64) if values.dtype.kind == "f" else values)


def close(found: Tensor, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found.detach(), tensor(expected), rtol=tolerance, atol=tolerance)


def batch_of(inputs: dict[str, np.ndarray], z: Tensor) -> CrystalBatch:
    crystal = tensor(inputs["cry_elem_idx"])
    count = torch.bincount(crystal)
    return CrystalBatch(
        z=z,
        amount=tensor(inputs["elem_weights"])[:, 0],
        edge_index=torch.stack([tensor(inputs["nbr_idx"]), tensor(inputs["self_idx"])]),
        batch=crystal,
        ptr=torch.cat([torch.zeros(1, dtype=torch.long), count.cumsum(0)]),
        max_sites=int(count.max()),
    )


def inputs_of(stored: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def numbers_of(symbols: np.ndarray) -> Tensor:
    return torch.tensor([atomic_numbers()[symbol] for symbol in symbols.tolist()])


def encoder_of(config: dict) -> Roost:
    """An encoder of the sizes of a fixture, with their separate widths of gates and messages."""
    width, layers = config["elem_fea_len"], config["n_graph"]
    *trunk, channels = [*config["trunk_hidden"], config["out_hidden"][0]]
    model = Roost(width, layers, config["elem_heads"], trunk=trunk, crystal_channels=channels, elements=str(TABLE))
    (gate,), (message,) = config["elem_gate"], config["elem_msg"]
    model.messages = nn.ModuleList(
        WeightedAttention(2 * width, width, gate, message, config["elem_heads"]) for _ in range(layers)
    )
    (gate,), (message,) = config["cry_gate"], config["cry_msg"]
    model.pool = WeightedAttention(width, width, gate, message, config["cry_heads"])
    return model.double()


def attention_names(attention: WeightedAttention, prefix: str) -> dict[str, Tensor]:
    """Views of the parameters (or gradients) of an attention by their names in the published program."""
    names: dict[str, Tensor] = {}
    split = attention.heads * attention.gate_channels
    for kind, of_hidden, weight, bias in (
        ("gate_nn", slice(None, split), attention.gate_weight[:, None], attention.gate_bias[:, None]),
        ("message_nn", slice(split, None), attention.message_weight, attention.message_bias),
    ):
        for head in range(attention.heads):
            own = f"{prefix}.{head}.{kind}"
            hidden = (p[of_hidden].unflatten(0, (attention.heads, -1))[head] for p in attention.hidden.parameters())
            names[f"{own}.fcs.0.weight"], names[f"{own}.fcs.0.bias"] = hidden
            names[f"{own}.fc_out.weight"], names[f"{own}.fc_out.bias"] = weight[head], bias[head]
    return names | {f"{prefix}.{head}.pow": attention.power[head : head + 1] for head in range(attention.heads)}


def residual_names(network: ResidualNetwork, last: nn.Linear, prefix: str) -> dict[str, Tensor]:
    names: dict[str, Tensor] = {f"{prefix}.fc_out.weight": last.weight, f"{prefix}.fc_out.bias": last.bias}
    for number, (layer, around) in enumerate(zip(network.layers, network.around, strict=True)):
        names |= {f"{prefix}.fcs.{number}.weight": layer.weight, f"{prefix}.fcs.{number}.bias": layer.bias}
        if isinstance(around, nn.Linear):
            names[f"{prefix}.res_fcs.{number}.weight"] = around.weight
    return names


def published_names(model: Roost) -> dict[str, Tensor]:
    names = {f"material_nn.embedding.{name}": p for name, p in model.embed_element.named_parameters()}
    for number, attention in enumerate(model.messages):
        names |= attention_names(attention, f"material_nn.graphs.{number}.pooling")
    names |= attention_names(model.pool, "material_nn.cry_pool")
    return names | residual_names(model.trunk, model.output, "trunk_nn")


def fill(names: dict[str, Tensor], stored: dict[str, np.ndarray]) -> None:
    """All weights, each in its place, and none left."""
    weights = {name.removeprefix("w/"): tensor(value) for name, value in stored.items() if name.startswith("w/")}
    assert names.keys() <= weights.keys()
    with torch.no_grad():
        for name, target in names.items():
            assert target.shape == weights[name].shape, name
            target.copy_(weights[name])


def gradients(build, model: nn.Module) -> dict[str, Tensor]:
    """Gradients by published names: those of the parameters stand in their place for the time being."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
        found = {name: value.clone() for name, value in build().items()}
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    return found


def head_of(config: dict) -> nn.Sequential:
    widths = config["out_hidden"]
    return nn.Sequential(ResidualNetwork(widths), nn.Linear(widths[-1], 2 if config["robust"] else 1)).double()


@pytest.mark.parametrize("name", ["roost_full.npz", "roost_small.npz"])
def test_every_stage(name: str) -> None:
    stored = stored_in(name)
    config = json.loads(str(stored["config_json"]))
    model, head = encoder_of(config), head_of(config)
    fill(published_names(model) | residual_names(*head, "output_nns.0"), stored)
    assert {n for n in stored if n.startswith("w/")} == {
        f"w/{n}" for n in published_names(model) | residual_names(*head, "output_nns.0")
    }
    batch = batch_of(inputs_of(stored, "in/"), numbers_of(stored["in/element_symbol"]))
    # The table that the fixture was computed with, through the reader.
    close(model.elements(batch.z), stored["in/elem_fea"], 1e-15)
    seen: dict[str, list[Tensor]] = {"nodes": [], "heads": []}
    for level in model.message_levels:
        level.register_forward_pre_hook(lambda _, given: seen["nodes"].append(given[0]))
    model.messages[0].register_forward_pre_hook(lambda _, given: seen["nodes"].append(given[0].parts[0][0]))
    model.pool.register_forward_hook(lambda _, given, out: seen["heads"].append(out))
    out = model.represent(batch)
    for number, node in enumerate(seen["nodes"]):
        close(node, stored[f"out/node_fea_{number}"])
    close(out.site, stored["out/node_fea_3"])
    close(seen["heads"][0].transpose(0, 1), stored["out/pool_heads"])
    close(seen["heads"][0].mean(dim=1), stored["out/material_embedding"])
    close(out.crystal, stored["out/trunk_pre_relu"])
    close(head(model.activated(out.crystal)), stored["out/output"])
    # The kernels serve the widths of roost_full.npz.
    model.set_kernels(True)
    fused = model.represent(batch)
    close(fused.site, stored["out/node_fea_3"])
    close(fused.crystal, stored["out/trunk_pre_relu"])


def test_robust_loss_and_all_gradients() -> None:
    stored = stored_in("roost_small.npz")
    config = json.loads(str(stored["config_json"]))
    model = encoder_of(config)
    objective = Supervised(model, ["y"], "robust_l1", head="residual").double()
    objective.head = head_of(config)

    def names() -> dict[str, Tensor]:
        return published_names(model) | residual_names(*objective.head, "output_nns.0")

    fill(names(), stored)
    batch = batch_of(inputs_of(stored, "in/"), numbers_of(stored["in/element_symbol"]))
    batch.y = tensor(stored["target"])
    losses = objective(batch)
    close(losses["total"], stored["loss_robust_l1"])
    losses["total"].backward()
    found = gradients(names, objective)
    assert {f"grad/{name}" for name in found} == {name for name in stored if name.startswith("grad/")}
    for name, gradient in found.items():
        close(gradient, stored[f"grad/{name}"])


def test_as_many_numbers_as_published() -> None:
    model = Roost(elements=str(TABLE))
    objective = Supervised(model, ["y"], head="residual")
    assert sum(p.numel() for n, p in objective.named_parameters() if "level" not in n) == 2_302_096


def ssl_step() -> tuple[dict[str, np.ndarray], BarlowTwins, CrystalBatch]:
    stored = stored_in("roost_ssl.npz")
    model = encoder_of(json.loads(str(stored["config_json"])))
    objective = BarlowTwins(model, channels=1024).double()
    projector = {f"proj_nn.0.{name}": p for name, p in objective.projector.named_parameters()}
    fill(published_names(model) | projector, stored)
    inputs = inputs_of(stored, "view1_unmasked/in/")
    table = model.elements.vectors
    z = torch.tensor([int((table - row).abs().sum(dim=1).nan_to_num(9).argmin()) for row in tensor(inputs["elem_fea"])])
    return stored, objective, batch_of(inputs, z)


def hidden(objective: BarlowTwins, batch: CrystalBatch, nodes: np.ndarray) -> CrystalBatch:
    """The view in which the stored nodes are hidden, in place of random ones."""
    view = objective.distorted(batch)
    view.z = batch.z.index_fill(0, torch.from_numpy(nodes), 0)
    return view


def test_a_whole_step_of_barlow_twins() -> None:
    stored, objective, batch = ssl_step()
    view = hidden(objective, batch, stored["masked_nodes"])
    close(objective.encoder.elements(view.z), stored["view2_masked_repo/in/elem_fea"], 1e-15)
    views = {"view1_unmasked": batch, "view2_masked_truenbr": view}
    for name, given in views.items():
        close(objective.encoder.activated(objective.encoder(given)), stored[f"{name}/trunk_relu"])
        close(objective.project(given), stored[f"{name}/z"])
    objective.distorted = lambda *_: view  # type: ignore[method-assign]
    losses = objective(batch)
    for name, key in (("total", "loss"), ("barlow/on_diagonal", "on"), ("barlow/off_diagonal", "off")):
        expected = stored[f"view2_masked_truenbr/{key}_div16"] * (stored["lambd"] if key == "off" else 1)
        torch.testing.assert_close(losses[name].detach() * 1024, torch.tensor(expected), rtol=1e-10, atol=0)


def test_masks_are_drawn_as_published() -> None:
    _, objective, batch = ssl_step()
    view = objective.distorted(batch, torch.Generator().manual_seed(0))
    assert torch.bincount(batch.batch[view.z == 0]).tolist() == [1] * 16  # also in Fe
    assert view.amount is batch.amount
    assert view.edge_index is batch.edge_index


def test_the_fault_of_the_published_loader() -> None:
    """There the second view has no edge between two elements, and losses are divided by the configured batch size."""
    stored, objective, batch = ssl_step()
    view = hidden(objective, batch, stored["masked_nodes"])
    view.edge_index = view.edge_index[1].expand(2, -1)
    name = "view2_masked_repo"
    z1, z2 = objective.project(batch), objective.project(view)
    close(z2, stored[f"{name}/z"])
    total, _, _ = barlow_twins_loss(z1, z2)
    torch.testing.assert_close(total.detach(), torch.tensor(stored[f"{name}/loss_div16"]), rtol=1e-10, atol=0)
    correlation = cross_correlation(z1, z2).detach() * 16 / 128
    off = correlation - torch.diag(correlation.diagonal())
    expected = (correlation.diagonal() - 1).square().sum() + 0.0051 * off.square().sum()
    torch.testing.assert_close(expected, torch.tensor(stored[f"{name}/loss_div128"]), rtol=1e-10, atol=0)
    total.backward()

    def names() -> dict[str, Tensor]:
        projector = {f"proj_nn.0.{name}": p for name, p in objective.projector.named_parameters()}
        return published_names(objective.encoder) | projector

    found = gradients(names, objective)
    for key in (key for key in stored if key.startswith("grad_repo/")):
        expected = stored[key]
        close(found[key.removeprefix("grad_repo/")], expected, 1e-10 * max(1.0, float(np.abs(expected).max())))
