"""The training loop's view of an objective: steps, optimiser, logs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.losses import BASELINES
from pyg_dim.models import Encoder
from pyg_dim.training.checkpoints import SECTION
from pyg_dim.training.coverage import scarce_text, skipped_text, starved_text
from pyg_dim.training.meter import COVERAGE, LossMeter

_logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 20
"""Steps between two looks at the loss; each waits for the device."""
_TRAIN, _VAL = 0, 1


class TrainingModule(LightningModule):
    """Train any objective that maps a batch to a dictionary of scalars with a "total".

    All random numbers of a step (noise, false samples, dropout) follow from the seed, the epoch, the step and the
    process, so a resumed run draws what the uninterrupted one would have drawn. Validation draws the same false
    samples at every epoch and has no noise.

    Args:
        objective: ``objective(batch, generator) -> {"total": ..., ...}``.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        seed: seed of the run.
        about: plain values that every checkpoint carries, from :func:`pyg_dim.training.checkpoints.section`.

    Source: AMSGrad, eps 1e-7, learning rate and weight decay of the configuration that was published with Moran et al.,
    Digital Discovery 2025, 4, 790 (``compact_dim_klnorm.yaml``).
    """

    def __init__(
        self, objective: nn.Module, lr: float, weight_decay: float, seed: int, about: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.objective = objective
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.about = dict(about)
        self.train_meter = LossMeter()
        self.val_meter = LossMeter()
        self._coverage_told = False

    @property
    def encoder(self) -> Encoder:
        """What is trained."""
        return cast(Encoder, self.objective.encoder)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with AMSGrad over all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, eps=1e-7, amsgrad=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the section that tells what the checkpoint is of."""
        checkpoint[SECTION] = self.about

    def on_train_batch_start(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Set the random numbers of the step."""
        torch.manual_seed(self._step_seed(_TRAIN, self.current_epoch, batch_idx))

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        losses = self.objective(batch)
        self.train_meter.update(losses, batch.num_graphs)
        return losses["total"]

    def on_train_batch_end(self, outputs: Any, batch: CrystalBatch, batch_idx: int) -> None:
        """Look from time to time whether the loss is still a number."""
        if (batch_idx + 1) % CHECK_EVERY == 0:
            self.require_finite()

    def on_validation_epoch_start(self) -> None:
        """Begin new means."""
        self.val_meter.reset()

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Losses of one batch with the false samples that belong to it at every epoch."""
        generator = torch.Generator(self.device).manual_seed(self._step_seed(_VAL, 0, batch_idx))
        self.val_meter.update(self.objective(batch, generator=generator), batch.num_graphs)

    def on_validation_epoch_end(self) -> None:
        """Log the means of validation."""
        self._log_means("val", self.val_meter.reduced_means())

    def on_train_epoch_start(self) -> None:
        """Begin new means."""
        self.train_meter.reset()

    def on_train_epoch_end(self) -> None:
        """Log the means of training, before the checkpoint of the epoch is written."""
        means = self.train_meter.reduced_means()
        self.require_finite(means)
        self._log_means("train", means)
        for estimator, baseline in BASELINES.items():
            if any(name.startswith(f"{estimator}/") for name in means):
                self.log(f"baseline/{estimator}", baseline, sync_dist=True)
        if not self._coverage_told and self.trainer.is_global_zero:
            self._tell_coverage(means)

    def require_finite(self, means: Mapping[str, float] | None = None) -> None:
        """Stop where the loss or a parameter is no longer a number. Waits for the device.

        Args:
            means: means of the epoch at its end; those of this process so far by default, without the parameters.

        Raises:
            FloatingPointError: with advice.
        """
        total = (self.train_meter.means() if means is None else means).get("total", 0.0)
        broken = None if math.isfinite(total) else "the loss"
        if broken is None and means is not None:
            norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in self.parameters()]))
            broken = None if bool(norms.isfinite().all()) else "a parameter"
        if broken is not None:
            raise FloatingPointError(
                f"{broken} is not a finite number in epoch {self.current_epoch + 1}: try an --lr below {self.lr:g}, "
                "or --precision 32 if it was lower; checkpoints of earlier epochs are kept"
            )

    def _tell_coverage(self, means: Mapping[str, float]) -> None:
        """Say after the first epoch which false samples the data do not allow; curves alone are easily missed."""
        self._coverage_told = True
        if (starved := starved_text(means)) is not None:
            _logger.warning("%s", starved)
        for text in (scarce_text(means), skipped_text(means)):
            if text is not None:
                _logger.info("%s", text)

    def _log_means(self, part: str, means: Mapping[str, float]) -> None:
        # A mean of nothing (a kind of false samples that was never possible) is no point of a curve.
        known = {name: value for name, value in means.items() if not math.isnan(value)}
        self.log_dict({tag(part, name): value for name, value in known.items()}, sync_dist=True)

    def _step_seed(self, part: int, epoch: int, step: int) -> int:
        words = np.random.SeedSequence([self.seed, part, epoch, step, self.global_rank]).generate_state(2, np.uint32)
        return int(words[0]) << 31 | int(words[1]) >> 1


def tag(part: str, name: str) -> str:
    """Name of a loss in the logs: what levels and kinds of false samples contribute has a page of its own.

    Args:
        part: "train" or "val".
        name: name of the loss in its objective.

    Returns:
        ``train/js/local`` for "js/local", ``detail/train/...`` for "detail/...".
    """
    if name.startswith("detail/"):
        return f"detail/{part}/{name.removeprefix('detail/')}"
    if name.endswith(COVERAGE):
        return f"detail/{part}/{name}"
    return f"{part}/{name}"
