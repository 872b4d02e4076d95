"""What a run shows while it trains, and how it stops when asked to."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.training.meter import COVERAGE
from pyg_dim.training.module import TrainingModule

_logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 - the user's wish, not an error
    """A run was asked to stop.

    Args:
        checkpoint: where it was saved; None where it had nothing to save yet.
        signum: the signal that asked.
        cut_short: whether the step under way could not be finished, so that what is saved is older.
    """

    def __init__(self, checkpoint: Path | None, signum: int, cut_short: bool = False) -> None:
        saved = "nothing was saved yet" if checkpoint is None else f"saved in {checkpoint}"
        if cut_short and checkpoint is not None:
            saved += " as it was before the present epoch"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {saved}")
        self.checkpoint = checkpoint
        self.signum = signum


class StopOnSignal(Callback):
    """Save and stop after the present step on Ctrl-C (SIGINT) or SIGTERM; a second signal ends the process at once.

    Args:
        checkpoint: file to save to.

    Raises:
        Interrupted: after saving.
    """

    SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
    ASK_EVERY: Final = 10
    """Steps between two agreements of several processes on stopping."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.signum: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        # Only the main thread may set handlers; elsewhere (a notebook's worker) signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            # Not logged: a signal may come in the middle of a write to the same stream.
            os.write(2, b"\nstopping after this step; once more to quit at once\n")

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in the middle of an epoch, where the loader can take it up again."""
        # The last step of an epoch is followed by validation and the checkpoint of the epoch: stop after them.
        if trainer.is_last_batch or not self._asked(trainer, batch_idx):
            return
        assert isinstance(pl_module, TrainingModule)  # noqa: S101
        pl_module.require_finite()
        trainer.save_checkpoint(self.checkpoint)
        raise Interrupted(self.checkpoint, self.signum or signal.SIGINT)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop between two epochs; the checkpoint of the first is already there."""
        if self._asked(trainer, 0) and trainer.current_epoch > 0:
            raise Interrupted(self.checkpoint, self.signum or signal.SIGINT)

    def _asked(self, trainer: Trainer, step: int) -> bool:
        if trainer.world_size == 1:
            return self.signum is not None
        # All processes have to stop at the same step, or the others wait for ever.
        return step % self.ASK_EVERY == 0 and trainer.strategy.reduce_boolean_decision(
            self.signum is not None, all=False
        )


class Progress(TQDMProgressBar):
    """A bar with losses and crystals per second, and a line for each epoch.

    The bar is shown on terminals only; the line is logged and so reaches files as well.
    """

    REDRAW_AFTER: Final = 0.5
    """Seconds between two drawings: each reads the losses and so waits for the device."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 0)
        self._start: float | None = None
        self._drawn = 0.0
        self._crystals = 0
        self._speed = 0.0

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Means of the epoch so far."""
        assert isinstance(pl_module, TrainingModule)  # noqa: S101
        return {**_short(_headline(pl_module.train_meter.means())), "crystals/s": f"{self._speed:.0f}"}

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the clock."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")
        self._start, self._crystals = time.perf_counter(), 0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock of an epoch that is taken up in its middle, which has no start of its own."""
        if self._start is None:
            self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CrystalBatch, batch_idx: int
    ) -> None:
        """Count crystals."""
        now = time.perf_counter()
        self._crystals += batch.num_graphs * trainer.world_size
        self._speed = self._crystals / max(now - (self._start or now), 1e-9)
        if now - self._drawn > self.REDRAW_AFTER or trainer.is_last_batch:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the speed and write the line of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        assert isinstance(pl_module, TrainingModule)  # noqa: S101
        pl_module.log_now({"crystals_per_second": self._speed})
        # The means are those of this process; the logged ones are those of all.
        parts = [f"train {_text(pl_module.train_meter.means())}"]
        if pl_module.val_meter.crystals:
            parts.append(f"val {_text(pl_module.val_meter.means())}")
        _logger.info(
            "epoch %d/%s | %s | %.0f crystals/s",
            trainer.current_epoch + 1, trainer.max_epochs, " | ".join(parts), self._speed,
        )  # fmt: skip


def _headline(means: dict[str, float]) -> dict[str, float]:
    """The losses that a user follows: those of an objective, without its parts."""
    hidden = ("detail/", "kl/", "total/")
    return {
        name: value
        for name, value in means.items()
        if not name.startswith(hidden) and not name.endswith(COVERAGE) and name != "total"
    }


def _short(means: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in means.items()}


def _text(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _short(_headline(means)).items())
