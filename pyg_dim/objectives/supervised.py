"""Training on labels: an encoder with a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.models.encoder import Encoder, Readout
from pyg_dim.models.residual import ResidualNetwork

LabelLoss = Literal["l1", "mse", "robust_l1"]
LABEL_LOSSES: Final = ("l1", "mse", "robust_l1")
Head = Literal["hidden", "residual"]
HEADS: Final = ("hidden", "residual")


def robust_l1_term(error: Tensor, log_deviation: Tensor) -> Tensor:
    r"""Negative logarithm of a Laplace density, without its constant: an absolute error with a spread of its own.

    .. math:: \sqrt 2\, |y - \mu|\, e^{-s} + s

    Args:
        error: differences of label and prediction, any shape.
        log_deviation: logarithm s of the standard deviation that is predicted for each.

    Returns:
        The terms, in the shape of ``error``.

    Source: Goodall and Lee, Nat. Commun. 2020, 11, 6280.
    """
    return math.sqrt(2) * error.abs() * (-log_deviation).exp() + log_deviation


class Supervised(nn.Module):
    r"""Predict the labels of crystals with an encoder and a head.

    The head works in units of the labels' spread, :math:`(y - \mu) / s`, with mean and standard deviation of the
    training labels (:meth:`fit_labels`); both are buffers and so part of every checkpoint. Missing labels (NaN) are
    masked: they change neither the loss nor a gradient.

    Args:
        encoder: an encoder with ``channels`` and ``forward(batch) -> [B, channels]``; for another readout than
            "global" a :class:`pyg_dim.models.Encoder`.
        targets: names of the T labels, in the order of the columns of ``batch.y``.
        loss: on normalised labels: "l1" (mean absolute error, as Site-Net), "mse" (mean squared error) or "robust_l1"
            (:func:`robust_l1_term`, with a deviation that the head predicts for each label).
        head_channels: width of the last hidden layer of the head.
        readout: vectors that the head sees, see :meth:`pyg_dim.models.Encoder.readout`; of the readout "global",
            :meth:`pyg_dim.models.Encoder.activated`.
        head: "hidden", one hidden layer with Mish; or "residual", two residual layers, the first of twice the width, as
            Roost.

    Raises:
        ValueError: no target, a target given twice, an unknown loss, head or readout.

    Source: Moran et al., Digital Discovery 2023, 2, 1297 (Site-Net); robust_l1 and residual: Goodall and Lee, Nat.
    Commun. 2020, 11, 6280.
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
        head: Head = "hidden",
    ) -> None:
        super().__init__()
        if not targets or len(set(targets)) < len(targets):
            raise ValueError(f"supervised training needs at least one target, each once; got {list(targets)}")
        if loss not in LABEL_LOSSES:
            raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LABEL_LOSSES)}")
        if head not in HEADS:
            raise ValueError(f"unknown head {head!r}; known: {', '.join(HEADS)}")
        self.encoder = encoder
        self.targets = tuple(targets)
        self.loss: LabelLoss = loss
        self.readout: Readout = readout
        channels: int = encoder.channels if readout == "global" else encoder.readout_channels(readout)  # type: ignore
        layers = (
            [ResidualNetwork([channels, 2 * head_channels, head_channels])]
            if head == "residual"
            else [nn.Linear(channels, head_channels), nn.Mish()]
        )
        # Predictions, then logarithms of their deviations.
        outputs = len(targets) * (2 if loss == "robust_l1" else 1)
        self.head = nn.Sequential(*layers, nn.Linear(head_channels, outputs))
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
            vectors = self.encoder(batch)
            return self.encoder.activated(vectors) if isinstance(self.encoder, Encoder) else vectors
        return self.encoder.readout(batch, self.readout)  # type: ignore[operator]

    def predict(self, batch: CrystalBatch) -> Tensor:
        """Predict labels in their own units.

        Args:
            batch: B crystals.

        Returns:
            [B, T].
        """
        return self._outputs(batch)[0] * self.scale + self.mean

    def _outputs(self, batch: CrystalBatch) -> tuple[Tensor, Tensor | None]:
        """[B, T] normalised predictions, and logarithms of their deviations where these are predicted."""
        out = self.head(self.represent(batch))
        return out.tensor_split([len(self.targets)], dim=1) if self.loss == "robust_l1" else (out, None)

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
        out, log_deviation = self._outputs(batch)
        error = torch.where(known, out - (labels - self.mean) / self.scale, 0.0)
        if log_deviation is not None:
            distance = robust_l1_term(error, torch.where(known, log_deviation, 0.0))
        else:
            distance = error.abs() if self.loss == "l1" else error.square()
        losses = {"total": distance.sum() / known.sum().clamp(min=1)}
        mae = (error.detach().abs() * self.scale).sum(dim=0) / known.sum(dim=0).clamp(min=1)
        coverage = known.to(mae.dtype).mean(dim=0)
        for column, name in enumerate(self.targets):
            losses[f"mae/{name}"] = mae[column]
            losses[f"mae/{name}/coverage"] = coverage[column]
        return losses
