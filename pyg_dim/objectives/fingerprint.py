"""Regression of fingerprints: numbers computed from the crystals themselves take the place of labels."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from pyg_dim.data import keys
from pyg_dim.data.batch import CrystalBatch

_LIMIT: Final = 10.0
"""Spreads beyond which a value counts as that far."""


class Fingerprint(nn.Module):
    r"""Predict the fingerprints of crystals with an encoder and one linear layer.

    .. math:: \frac{1}{B F} \sum_{b, k} \left( (W z_b + a)_k
              - \mathrm{clip}_{\pm 10} \frac{y_{bk} - \mu_k}{s_k} \right)^2

    z is the global representation, y the fingerprint, and :math:`\mu, s` its mean and standard deviation over the
    training crystals (:meth:`fit_fingerprints`), buffers and so part of every checkpoint: every column counts alike.
    Values beyond ten spreads count as ten: some columns are zero but for a few crystals, and where one of these alone
    is left out of training, the spread is next to nothing.
    A projector without a hidden layer leaves all that is learned to the encoder.

    Args:
        encoder: an encoder with ``channels`` and ``forward(batch) -> [B, channels]``.
        num_features: columns F of the fingerprint.

    Raises:
        ValueError: no column.

    Source: Huang, Magar, Barati Farimani, J. Chem. Inf. Model. 2024, 64, 627 (fingerprint learning), there with
    columns scaled to [0, 1].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, num_features: int) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"a fingerprint has one column at least; num_features is {num_features}")
        self.encoder = encoder
        channels: int = encoder.channels  # type: ignore[assignment]
        self.projector = nn.Linear(channels, num_features)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def fit_fingerprints(self, values: Tensor) -> None:
        """Set mean and spread of the normalisation from the training crystals.

        Args:
            values: [n, F] fingerprints; a column that is the same for all keeps its unit.

        Raises:
            ValueError: values of another shape, or a number that is not finite; the message names the row.
        """
        if values.dim() != 2 or not len(values) or values.size(1) != self.mean.numel():
            raise ValueError(f"fingerprints of shape {list(values.shape)} for {self.mean.numel()} columns")
        if not values.isfinite().all():
            row, column = (~values.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"the fingerprint of row {row} is not a number in column {column}")
        self.mean.copy_(values.double().mean(dim=0))
        spread = values.double().std(dim=0, correction=0)
        # Rounding alone spreads equal numbers a little, and must not be blown up to a standard deviation.
        kind = torch.finfo(self.scale.dtype)
        constant = spread <= kind.eps * values.double().abs().amax(dim=0) + kind.tiny
        self.scale.copy_(spread.masked_fill(constant, 1.0))

    def forward(self, batch: CrystalBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compare predictions with the fingerprints of a batch.

        Args:
            batch: B crystals with ``fingerprint`` [B, F].
            generator: not used: nothing is drawn at random here.

        Returns:
            Scalars: "total" (mean squared error over crystals and columns, in units of the spread) and
            "mse/fingerprint" (the same, detached). A constant prediction scores about 1 if no column is constant.

        Raises:
            ValueError: the batch has no fingerprint.
        """
        if keys.FINGERPRINT not in batch:
            raise ValueError(
                "the batch has no fingerprint: make it of dataset.with_fingerprint(fingerprint_table(dataset, "
                '["magpie"])), from pyg_dim.data.fingerprints'
            )
        truth = ((batch.fingerprint.to(self.scale.dtype) - self.mean) / self.scale).clamp(-_LIMIT, _LIMIT)
        total = (self.projector(self.encoder(batch)) - truth).square().mean()
        return {"total": total, "mse/fingerprint": total.detach()}
