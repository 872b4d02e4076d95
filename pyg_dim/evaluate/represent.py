"""Representations of crystals from a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Final

import torch
from torch import Tensor, nn

from pyg_dim.data import keys
from pyg_dim.data.batch import CrystalBatch
from pyg_dim.models.encoder import Encoder, Readout

NOT_FINITE: Final = "the encoder gives numbers that are not finite"
"""Why a crystal has no embedding that the encoder can make nothing of."""


def represent(
    encoder: Encoder,
    loader: Iterable[CrystalBatch],
    kind: Readout | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Represent the crystals of a loader by the vectors of a frozen encoder.

    The encoder runs in evaluation mode and without gradients; its modes and its device are restored afterwards. The
    numbers of a batch are given to it in the precision of its parameters, so that a loader of 32 bit numbers serves an
    encoder of 64 bits too; what was rounded by the loader stays rounded. The batches of the loader are left as they
    are.

    Args:
        encoder: The encoder.
        loader: Yields crystal batches with edges, each with its rows in the data set (:data:`pyg_dim.data.keys.ROW`).
        kind: ``"global"`` (the global vector, the representation of the paper) or ``"full"`` (the global vector, the
            pooled hidden layer and the mean, standard deviation, minimum and maximum of the local vectors); by default
            that of the encoder, ``encoder.default_readout``.
        device: Where to compute; the device of the encoder's parameters by default.

    Returns:
        ``(vectors, rows)``, both on the CPU and in ascending order of the rows: vectors [n, D] in the precision of
        the encoder and rows [n] int64. A row that the loader yields twice is returned once.

    Raises:
        ValueError: If the readout is unknown or the loader yields nothing.
    """
    home = _device(encoder)
    device = home if device is None else torch.device(device)
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), None)

    def given(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else None)

    vectors: list[Tensor] = []
    rows: list[Tensor] = []
    with torch.no_grad(), _frozen(encoder), _moved(encoder, home, device):
        for batch in loader:
            # A copy, since PyG changes a batch in place.
            vectors.append(encoder.readout(copy(batch).apply(given), kind).cpu())
            rows.append(batch[keys.ROW].cpu())
    if not rows:
        raise ValueError("the loader yields no crystal: there is nothing to represent")
    every_row, every_vector = torch.cat(rows), torch.cat(vectors)
    order = torch.argsort(every_row, stable=True)
    every_row, every_vector = every_row[order], every_vector[order]
    first = torch.ones_like(every_row, dtype=torch.bool)
    first[1:] = every_row[1:] != every_row[:-1]
    return every_vector[first], every_row[first]


def vector_names(encoder: Encoder, kind: Readout | None = None) -> list[str]:
    """Name the numbers of a representation.

    Args:
        encoder: The encoder.
        kind: Its readout, see :func:`represent`.

    Returns:
        D names: ``global0``, ...; of the full readout then ``hidden0``, ..., ``site_mean0``, ..., ``site_std0``, ...,
        ``site_min0``, ..., ``site_max0``, ...; of the decoded one ``decoded0``, ....

    Raises:
        ValueError: If the readout is unknown.
    """
    kind = encoder.default_readout if kind is None else kind
    widths: dict[str, int] = {kind: encoder.readout_channels(kind)}
    if kind == "full":
        sites = encoder.global_level.constituent_channels
        widths = {"global": encoder.channels, "hidden": encoder.output.in_features}
        widths |= {f"site_{statistic}": sites for statistic in ("mean", "std", "min", "max")}
    return [f"{part}{number}" for part, width in widths.items() for number in range(width)]


def _device(encoder: nn.Module) -> torch.device:
    parameter = next(encoder.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _frozen(encoder: nn.Module) -> Iterator[None]:
    # Each module has its own flag: a part that a user keeps in evaluation mode must stay in it.
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _moved(encoder: nn.Module, home: torch.device, device: torch.device) -> Iterator[None]:
    if device == home:
        yield
        return
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to(home)
