"""Distillation: the embedding that a frozen teacher has of a crystal takes the place of a label."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyg_dim.data import keys
from pyg_dim.data.batch import CrystalBatch


class Distillation(nn.Module):
    r"""Predict the embeddings of a frozen teacher with an encoder and one linear layer.

    .. math:: \frac{1}{B F} \sum_{b, k} \left( (W z_b + a)_k - \frac{t_{bk} - \mu_k}{s} \right)^2, \qquad
              s^2 = \frac1F \sum_k \mathrm{var}(t_k)

    z is the global representation of the student, t the embedding of the teacher, computed once before training
    (:meth:`pyg_dim.data.CrystalDataset.with_embedding`), :math:`\mu` its mean and :math:`s^2` its mean variance over
    the training crystals (:meth:`fit_embeddings`), buffers and so part of every checkpoint. One number s for all
    dimensions leaves the distances between embeddings as they are, unlike one for each, which would raise dimensions
    that tell nothing: it is the published loss up to a factor that makes it of order one, the share of the variance of
    the teacher that the student does not tell.

    Crystals without an embedding (NaN) are masked: they change neither the loss nor a gradient. A projector without a
    hidden layer leaves all that is learned to the encoder.

    Args:
        encoder: an encoder with ``channels`` and ``forward(batch) -> [B, channels]``.
        num_dimensions: length F of the embeddings.

    Raises:
        ValueError: no dimension.

    Source: Huang, Magar, Barati Farimani, J. Chem. Inf. Model. 2024, 64, 627 (multimodal learning), there without
    scaling; the projector is the linear layer of the paper, where the program has four layers.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: nn.Module, num_dimensions: int) -> None:
        super().__init__()
        if num_dimensions < 1:
            raise ValueError(f"an embedding has one dimension at least; num_dimensions is {num_dimensions}")
        self.encoder = encoder
        channels: int = encoder.channels  # type: ignore[assignment]
        self.projector = nn.Linear(channels, num_dimensions)
        self.register_buffer("mean", torch.zeros(num_dimensions))
        self.register_buffer("scale", torch.ones(()))

    def fit_embeddings(self, values: Tensor) -> None:
        """Set mean and spread of the normalisation from the training crystals.

        Args:
            values: [n, F] embeddings, NaN for a crystal that has none.

        Raises:
            ValueError: values of another shape, or no embedding among them.
        """
        if values.dim() != 2 or values.size(1) != self.mean.numel():
            raise ValueError(f"embeddings of shape {list(values.shape)} for {self.mean.numel()} dimensions")
        known = values[values.isfinite().all(dim=1)].double()
        if not len(known):
            raise ValueError("the teacher has no embedding of any crystal in the training part of the data")
        self.mean.copy_(known.mean(dim=0))
        spread = known.var(dim=0, correction=0).mean().sqrt()
        # Rounding alone spreads equal numbers a little, and must not be blown up.
        kind = torch.finfo(self.scale.dtype)
        constant = spread <= kind.eps * known.abs().max() + kind.tiny
        self.scale.copy_(torch.where(constant, 1.0, spread))

    def forward(self, batch: CrystalBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compare predictions with the embeddings that the teacher has of a batch.

        Args:
            batch: B crystals with ``embedding`` [B, F], NaN for those that have none.
            generator: not used: nothing is drawn at random here.

        Returns:
            Scalars: "total" (mean squared error over dimensions and crystals with an embedding, in units of the mean
            variance; 0 where a batch has none), "mse/embedding" (the same, detached) and "mse/embedding/coverage"
            (share of the crystals of the batch that have one). A constant prediction scores 1.

        Raises:
            ValueError: the batch has no embedding.
        """
        if keys.EMBEDDING not in batch:
            raise ValueError("the batch has no embedding of a teacher: make it of dataset.with_embedding(vectors)")
        known = batch.embedding.isfinite().all(dim=1)
        # The mask comes before the difference: a NaN times zero would still be NaN, in the gradient too.
        truth = torch.where(known[:, None], batch.embedding.to(self.scale.dtype), self.mean)
        error = self.projector(self.encoder(batch)) - (truth - self.mean) / self.scale
        error = torch.where(known[:, None], error, 0.0).square().mean(dim=1)
        total = error.sum() / known.sum().clamp(min=1)
        return {
            "total": total,
            "mse/embedding": total.detach(),
            "mse/embedding/coverage": known.to(total.dtype).mean(),
        }
