"""Training on labels: an encoder with a head of two layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.models.encoder import Readout

LabelLoss = Literal["l1", "mse"]
LABEL_LOSSES: Final = ("l1", "mse")


class Supervised(nn.Module):
    r"""Predict the labels of crystals with an encoder and a head of two layers.

    The head works in units of the labels' spread, :math:`(y - \mu) / s`, with mean and standard deviation of the
    training labels (:meth:`fit_labels`); both are buffers and so part of every checkpoint. Missing labels (NaN) are
    masked: they change neither the loss nor a gradient.

    Args:
        encoder: an encoder with ``channels`` and ``forward(batch) -> [B, channels]``; for another readout than
            "global" a :class:`pyg_dim.models.Encoder`.
        targets: names of the T labels, in the order of the columns of ``batch.y``.
        loss: "l1" (mean absolute error, as Site-Net) or "mse" (mean squared error), on normalised labels.
        head_channels: width of the hidden layer of the head.
        readout: vectors that the head sees, see :meth:`pyg_dim.models.Encoder.readout`.

    Raises:
        ValueError: no target, a target given twice, an unknown loss or readout.

    Source: Moran et al., Digital Discovery 2023, 2, 1297 (Site-Net).
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        targets: Sequence[str],
        loss: LabelLoss = "l1",
        head_channels: int = 64,
        readout: Readout = "global",
    ) -> None:
        super().__init__()
        if not targets or len(set(targets)) < len(targets):
            raise ValueError(f"supervised training needs at least one target, each once; got {list(targets)}")
        if loss not in LABEL_LOSSES:
            raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LABEL_LOSSES)}")
        self.encoder = encoder
        self.targets = tuple(targets)
        self.loss: LabelLoss = loss
        self.readout: Readout = readout
        channels: int = encoder.channels if readout == "global" else encoder.readout_channels(readout)  # type: ignore
        self.head = nn.Sequential(nn.Linear(channels, head_channels), nn.Mish(), nn.Linear(head_channels, len(targets)))
        self.register_buffer("mean", torch.zeros(len(targets)))
        self.register_buffer("scale", torch.ones(len(targets)))

    def fit_labels(self, labels: Tensor) -> None:
        """Set mean and spread of the normalisation from the training labels.

        Args:
            labels: [n, T] in their own units, NaN where missing.

        Raises:
            ValueError: a target without any label.
        """
        for column, name in enumerate(self.targets):
            known = labels[:, column].double()
            known = known[known.isfinite()]
            if not known.numel():
                raise ValueError(f"target {name!r} has no label in the training part of the data")
            spread = known.std(correction=0)
            self.mean[column] = known.mean()
            # A constant target has no spread to divide by.
            self.scale[column] = torch.where(spread > 0, spread, torch.ones_like(spread))

    def represent(self, batch: CrystalBatch) -> Tensor:
        """The vectors that the head sees.

        Args:
            batch: B crystals.

        Returns:
            [B, width of the readout].
        """
        if self.readout == "global":
            return self.encoder(batch)
        return self.encoder.readout(batch, self.readout)  # type: ignore[operator]

    def predict(self, batch: CrystalBatch) -> Tensor:
        """Predict labels in their own units.

        Args:
            batch: B crystals.

        Returns:
            [B, T].
        """
        return self.head(self.represent(batch)) * self.scale + self.mean

    def forward(self, batch: CrystalBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compare predictions with the labels of a batch.

        Args:
            batch: B crystals with labels ``y`` [B, T] in their own units, NaN where missing.
            generator: not used: nothing is drawn at random here.

        Returns:
            Scalars: "total" (the loss on normalised labels, mean over known labels; 0 where a batch has none),
            "mae/<target>" (mean absolute error in the unit of the target, 0 where the batch has no label) and
            "mae/<target>/coverage" (share of the crystals of the batch that have this label).
        """
        known = batch.y.isfinite()
        # The mask comes before the difference: a NaN times zero would still be NaN, in the gradient too.
        labels = torch.where(known, batch.y.to(self.scale.dtype), self.mean)
        error = torch.where(known, (self.predict(batch) - labels) / self.scale, 0.0)
        distance = error.abs() if self.loss == "l1" else error.square()
        losses = {"total": distance.sum() / known.sum().clamp(min=1)}
        mae = (error.detach().abs() * self.scale).sum(dim=0) / known.sum(dim=0).clamp(min=1)
        coverage = known.to(mae.dtype).mean(dim=0)
        for column, name in enumerate(self.targets):
            losses[f"mae/{name}"] = mae[column]
            losses[f"mae/{name}/coverage"] = coverage[column]
        return losses
