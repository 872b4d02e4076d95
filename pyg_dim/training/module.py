"""The training loop's view of an objective: steps, optimiser, logs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.losses import BASELINES
from pyg_dim.models import Encoder
from pyg_dim.training.checkpoints import METRICS, SECTION
from pyg_dim.training.coverage import scarce_text, skipped_text, starved_text
from pyg_dim.training.loaders import CrystalData
from pyg_dim.training.meter import COVERAGE, LossMeter
from pyg_dim.training.schedules import Schedule, cosine
from pyg_dim.training.skipping import SkippedSteps, poisoned

_logger = logging.getLogger(__name__)

CHECK_EVERY: Final = 20
"""Steps between two looks at what was skipped; each waits for the device."""
MAX_SKIPPED: Final = 20
"""Steps in a row that may be skipped; so may half of an epoch."""
_TRAIN, _VAL = 0, 1


class TrainingModule(LightningModule):
    r"""Train any objective that maps a batch to a dictionary of scalars with a "total".

    All random numbers of a batch (noise, false samples, dropout) follow from the seed, the epoch and the number of the
    batch in it, so a resumed run draws what the uninterrupted one would have drawn. Validation draws the same false
    samples at every epoch and has no noise.

    In step s of an epoch, process r of P has batch sP + r. The optimiser makes one step on

    .. math:: L = \sum_r \frac{n_r}{\sum_q n_q} L_r

    with the numbers of crystals n and the totals L_r: what one process does that accumulates the gradients of the same
    P batches with these weights. All crystals of a batch count, also where the mean inside L_r is over fewer of them
    (those with a false sample, or with a label). Batches that are repeated so that all processes have as many count
    nothing. Logged losses are not scaled. The fit takes its batches from a
    :class:`~pyg_dim.training.loaders.CrystalData`.

    A step whose loss or gradient is no finite number is skipped and counted (tag ``skipped_steps``), and its losses are
    no part of the means; :data:`MAX_SKIPPED` in a row, or more than half of an epoch, stop the run.

    Args:
        objective: ``objective(batch, generator) -> {"total": ..., ...}``.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        seed: seed of the run.
        about: plain values that every checkpoint carries, from :func:`pyg_dim.training.checkpoints.section`.
        schedule: learning rate over the run, see :mod:`pyg_dim.training.schedules`.

    Source: AMSGrad, eps 1e-7, learning rate and weight decay of the configuration that was published with Moran et al.,
    Digital Discovery 2025, 4, 790 (``compact_dim_klnorm.yaml``).
    """

    def __init__(
        self,
        objective: nn.Module,
        lr: float,
        weight_decay: float,
        seed: int,
        about: Mapping[str, Any],
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__()
        self.objective = objective
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.about = dict(about)
        self.schedule = schedule
        self.train_meter = LossMeter()
        self.val_meter = LossMeter()
        self._skipped = SkippedSteps(objective)
        self._coverage_told = False

    @property
    def encoder(self) -> Encoder:
        """What is trained."""
        return cast(Encoder, self.objective.encoder)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with AMSGrad over all parameters, and the schedule of its learning rate."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.lr, weight_decay=self.weight_decay, eps=1e-7, amsgrad=True,
            fused=_is_fused(self.device),
        )  # fmt: skip
        if self.schedule == "constant":
            return optimizer
        factor = partial(cosine, steps=int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the section that tells what the checkpoint is of, and what was measured."""
        checkpoint[SECTION] = self.about
        checkpoint[METRICS] = {name: float(value) for name, value in self.trainer.callback_metrics.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the optimiser as it is made here, also where the run was on another kind of device."""
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group["fused"] = _is_fused(self.trainer.strategy.root_device)

    def on_train_batch_start(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Set the random numbers of the step."""
        self._skipped.begin_step()
        torch.manual_seed(self._step_seed(_TRAIN, self.current_epoch, self._number(batch_idx)))

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, weighted where several processes make one step."""
        losses = self.objective(batch)
        crystals = self._data.train.crystals(batch_idx)
        mine = crystals[self.global_rank]
        total = poisoned(losses["total"])
        self.train_meter.update(losses, mine, losses["total"].detach().isfinite())
        if len(crystals) == 1:
            return total
        # Gradients are averaged over the processes, each with the same weight.
        return total * (mine * len(crystals) / sum(crystals))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimiser skip the step where a gradient is no finite number."""
        found = self._skipped.look(optimizer)
        if optimizer.param_groups[0]["fused"]:
            # On the device: the host does not wait for the answer.
            optimizer.found_inf = found  # type: ignore[attr-defined]
        elif found:
            # What has no gradient is left as it is.
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(self, outputs: Any, batch: CrystalBatch, batch_idx: int) -> None:
        """Look from time to time whether the steps still count."""
        if (batch_idx + 1) % CHECK_EVERY == 0:
            self.require_finite()

    def on_validation_epoch_start(self) -> None:
        """Begin new means."""
        self.val_meter.reset()

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Losses of one batch with the false samples that belong to it at every epoch."""
        generator = torch.Generator(self.device).manual_seed(self._step_seed(_VAL, 0, self._number(batch_idx)))
        loader = self._data.val
        assert loader is not None  # noqa: S101 - this is one of its batches
        self.val_meter.update(self.objective(batch, generator=generator), loader.crystals(batch_idx)[self.global_rank])

    def on_validation_epoch_end(self) -> None:
        """Log the means of validation."""
        self._log_means("val", self.val_meter.reduced_means())

    def on_train_epoch_start(self) -> None:
        """Begin new means."""
        self.train_meter.reset()
        self._skipped.begin_epoch()

    def on_train_epoch_end(self) -> None:
        """Log the means of training, before the checkpoint of the epoch is written."""
        means = self.train_meter.reduced_means()
        self.require_finite(means)
        self._log_means("train", means)
        self.log_now(
            {f"baseline/{e}": value for e, value in BASELINES.items() if any(n.startswith(f"{e}/") for n in means)}
        )
        skipped, _ = self._skipped.counts()
        self.log_now({"skipped_steps": float(skipped)})
        if skipped and self.trainer.is_global_zero:
            _logger.warning(
                "%d of %d steps of epoch %d were skipped, because their loss or gradient was no finite number",
                skipped, self._skipped.steps, self.current_epoch + 1,
            )  # fmt: skip
        if not self._coverage_told and self.trainer.is_global_zero:
            self._tell_coverage(means)

    def require_finite(self, means: Mapping[str, float] | None = None) -> None:
        """Stop where too many steps were skipped, or a parameter is no number. Waits for the device.

        Args:
            means: means of the epoch at its end; None within it, where the parameters are not looked at.

        Raises:
            FloatingPointError: with advice.
        """
        # Gradients are those of all processes, which so stop together: others would wait for one that has stopped.
        (skipped, in_a_row), steps = self._skipped.counts(), self._skipped.steps
        broken = None
        if in_a_row >= MAX_SKIPPED:
            broken = f"the loss or its gradient, in {in_a_row} steps in a row,"
        elif means is not None and 2 * skipped > steps:
            broken = f"the loss or its gradient, in {skipped} of {steps} steps,"
        elif means is not None:
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
        self.log_now({tag(part, name): value for name, value in means.items() if not math.isnan(value)})

    def log_now(self, values: Mapping[str, float]) -> None:
        """Log what is the same in all processes at the end of an epoch, or of its validation, at once.

        What Lightning logs at the end of an epoch comes behind the checkpoint of the epoch: a run that is killed
        between the two would lack it for ever, since it goes on behind the epoch.

        Args:
            values: by tag.
        """
        self.log_dict(dict(values), sync_dist=True, logger=False)
        if self.logger is not None:
            self.logger.log_metrics(dict(values), step=self.global_step - 1)
            self.logger.save()

    @property
    def _data(self) -> CrystalData:
        return cast(CrystalData, self.trainer.datamodule)  # type: ignore[attr-defined]

    def _number(self, step: int) -> int:
        """Number that the batch of this process has among those of all."""
        return step * self.trainer.world_size + self.global_rank

    def _step_seed(self, part: int, epoch: int, number: int) -> int:
        # The zero was the number of the process once; it stays for runs of one process to draw what they drew.
        words = np.random.SeedSequence([self.seed, part, epoch, number, 0]).generate_state(2, np.uint32)
        return int(words[0]) << 31 | int(words[1]) >> 1


def _is_fused(device: torch.device) -> bool | None:
    """Whether the optimiser is one kernel, which can skip a step by itself; elsewhere PyTorch's default is."""
    return True if device.type == "cuda" else None


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
