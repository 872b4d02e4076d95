from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from pyg_dim.models import SiteNet
from pyg_dim.objectives import BarlowTwins, Combined, DeepInfoMax, Supervised

SMALL = {"site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8], "local_channels": 8,
         "pre_pool": [8], "post_pool": [8, 8]}  # fmt: skip
NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "CaF2"]
WEIGHTS = {"deep_infomax": 1.0, "barlow_twins": 0.5, "supervised": 2.0}


def combined(weights=WEIGHTS) -> Combined:
    encoder = SiteNet(**SMALL)
    every = {
        "deep_infomax": DeepInfoMax(encoder),
        "barlow_twins": BarlowTwins(encoder, channels=12),
        "supervised": Supervised(encoder, ["a"]),
    }
    return Combined({name: every[name] for name in weights}, weights).double()


@pytest.fixture
def batch(batch_of):
    made = batch_of(NAMES)
    made.y = torch.arange(6, dtype=torch.float64)[:, None]
    return made


class Constant(nn.Module):
    """An objective that always gives the same."""

    def __init__(self, encoder: nn.Module, **losses: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.losses = losses

    def forward(self, batch, generator=None):
        return {name: torch.tensor(value) for name, value in self.losses.items()}


def test_the_total_is_the_weighted_sum_of_those_of_the_parts(batch) -> None:
    objective = combined()
    generator = torch.Generator().manual_seed(3)
    losses = objective(batch, generator)
    generator.manual_seed(3)
    parts = {name: part(batch, generator) for name, part in objective.parts.items()}
    expected = sum(WEIGHTS[name] * part["total"] for name, part in parts.items())
    assert losses["total"].item() == expected.item()
    for name, part in parts.items():
        assert losses[f"total/{name}"].equal(part["total"])
        assert all(losses[entry].equal(value) for entry, value in part.items() if entry != "total")
    assert len(losses) == 1 + sum(map(len, parts.values()))
    assert {"js/local", "kl/global", "barlow/on_diagonal", "mae/a"} <= losses.keys()
    assert [name for name, value in losses.items() if value.requires_grad] == ["total"]


def test_gradients_are_the_weighted_sum_too(batch) -> None:
    objective = combined().eval()
    objective(batch, torch.Generator().manual_seed(3))["total"].backward()
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    generator = torch.Generator().manual_seed(3)
    for name, part in objective.parts.items():
        (WEIGHTS[name] * part(batch, generator)["total"]).backward()
    for name, p in objective.named_parameters():
        torch.testing.assert_close(p.grad, found.get(name), rtol=1e-9, atol=1e-12)


def test_a_weight_of_zero_trains_nothing(batch) -> None:
    objective = combined({"deep_infomax": 0.0, "supervised": 1.0})
    objective(batch)["total"].backward()
    levels = [p.grad for name, p in objective.encoder.named_parameters() if "_level." in name]
    assert levels
    assert not any(gradient.any() for gradient in levels)
    assert any(p.grad.any() for p in objective.parts["supervised"].head.parameters())


def test_the_state_has_the_encoder_once_and_comes_back() -> None:
    objective = combined()
    state = objective.state_dict()
    own = {f"encoder.{name}" for name in objective.encoder.state_dict()}
    added = {
        "parts.barlow_twins.projector.weight", "parts.barlow_twins.projector.bias", "parts.supervised.mean",
        "parts.supervised.scale", *(f"parts.supervised.head.{k}.{name}" for k in (0, 2) for name in ("weight", "bias")),
    }  # fmt: skip
    assert state.keys() == own | added
    torch.manual_seed(1)
    other = combined()
    assert not all(value.equal(other.state_dict()[name]) for name, value in state.items())
    other.load_state_dict(state)
    assert all(value.equal(other.state_dict()[name]) for name, value in state.items())
    # The state that was given is not added to.
    assert state.keys() == own | added


def test_the_state_of_what_holds_a_combination() -> None:
    """As the Lightning module does, under a prefix."""
    outer = nn.ModuleDict({"objective": combined()})
    state = outer.state_dict()
    assert not [name for name in state if "parts" in name and "encoder" in name]
    torch.manual_seed(1)
    other = nn.ModuleDict({"objective": combined()})
    other.load_state_dict(state)
    assert all(value.equal(other.state_dict()[name]) for name, value in state.items())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*objective.encoder"):
        other.load_state_dict({name: value for name, value in state.items() if "parts" in name})


def test_parameters_are_counted_once_and_a_copy_shares_its_own_encoder(batch) -> None:
    objective = deepcopy(combined())
    names = [name for name, _ in objective.named_parameters()]
    assert not [name for name in names if name.startswith("parts.") and ".encoder." in name]
    assert all(part.encoder is objective.encoder for part in objective.parts.values())
    assert objective.state_dict().keys() == combined().state_dict().keys()
    objective(batch)["total"].backward()


def test_what_does_not_fit_together_is_named(batch) -> None:
    encoder, other = nn.Linear(1, 1), nn.Linear(1, 1)
    one = Constant(encoder, total=1.0)
    with pytest.raises(ValueError, match="at least one objective"):
        Combined({}, {})
    with pytest.raises(ValueError, match=r"b has another encoder than a: build all .* same encoder object"):
        Combined({"a": one, "b": Constant(other)}, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="the weights are of nothing, the objectives are a"):
        Combined({"a": one}, {})
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"the weight of a must be finite and not negative, not {weight}"):
            Combined({"a": one}, {"a": weight})
    twice = {name: Constant(encoder, **{"total": 1.0, "js/local": 2.0}) for name in "ab"}
    with pytest.raises(ValueError, match="b gives js/local, and so does another objective before it"):
        Combined(twice, {"a": 1, "b": 1})(batch)
