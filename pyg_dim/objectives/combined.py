"""Several objectives that train one encoder at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyg_dim.models.encoder import Encoder


class Combined(nn.Module):
    r"""The weighted sum of objectives that share one encoder.

    .. math:: L = \sum_k w_k L_k

    Each objective makes its own passes of the encoder. The state (``state_dict``) has the encoder once, under
    "encoder.", and what an objective adds to it under "parts.<name>.".

    Args:
        objectives: objectives by name, each with the same ``encoder``.
        weights: their weights by the same names.

    Raises:
        ValueError: no objective, encoders that are not one and the same, names that differ, or a weight that is
            negative or no finite number.
    """

    def __init__(self, objectives: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not objectives:
            raise ValueError("a combination needs at least one objective")
        if objectives.keys() != weights.keys():
            raise ValueError(
                f"the weights are of {', '.join(weights) or 'nothing'}, the objectives are {', '.join(objectives)}: "
                "give each objective one weight"
            )
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} must be finite and not negative, not {weight}")
        first, encoder = next((name, objective.encoder) for name, objective in objectives.items())
        for name, objective in objectives.items():
            if objective.encoder is not encoder:
                raise ValueError(
                    f"{name} has another encoder than {first}: build all objectives of a combination with the same "
                    "encoder object"
                )
        self.encoder = cast(Encoder, encoder)
        self.parts = nn.ModuleDict(objectives)
        self.weights = {name: float(weights[name]) for name in objectives}
        self.register_state_dict_post_hook(_take_copies_out)
        self.register_load_state_dict_pre_hook(_put_copies_in)

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: what all objectives take.
            generator: random numbers, on the device of the batch; the objectives draw from it one after the other.

        Returns:
            "total", a scalar with its gradient; "total/<name>", that of each objective without its weight; and all
            other entries of the objectives under their own names.

        Raises:
            ValueError: two objectives have an entry of the same name.
        """
        weighted: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for name, objective in self.parts.items():
            part: dict[str, Tensor] = objective(batch, generator)
            weighted.append(self.weights[name] * part["total"])
            own = {entry: value for entry, value in part.items() if entry != "total"}
            if twice := losses.keys() & own.keys():
                raise ValueError(f"{name} gives {', '.join(sorted(twice))}, and so does another objective before it")
            losses |= {f"total/{name}": part["total"].detach()} | own
        return {"total": sum(weighted[1:], weighted[0])} | losses


def _copies(module: nn.Module, prefix: str) -> tuple[str, list[str]]:
    """Where the encoder lies in a state, and where it would lie again under each part."""
    return f"{prefix}encoder.", [f"{prefix}parts.{name}.encoder." for name in cast(Combined, module).parts]


def _take_copies_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    _, copies = _copies(module, prefix)
    for name in [name for name in state if name.startswith(tuple(copies))]:
        del state[name]


def _put_copies_in(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own, copies = _copies(module, prefix)
    for name in [name for name in state if name.startswith(own)]:
        state |= {f"{place}{name.removeprefix(own)}": state[name] for place in copies}
