"""The folder of an experiment: runs, vectors and tables, each made once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyg_dim import models
from pyg_dim.experiments import probing, transferring
from pyg_dim.experiments.features import checkpoint_features, descriptor_features
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task
from pyg_dim.training.checkpoints import LAST
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.resume import ResumedRun
from pyg_dim.training.run import train

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where an experiment writes.

    Attributes:
        directory: Where runs, tables and pictures go.
        split: Version of the experiment, a part of the names of its tables.
        workers: Processes of probes and fine-tuning.
    """

    directory: Path
    split: str
    workers: int = 1
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.directory / "runs"

    def trained(self, name: str, **options: Any) -> Path:
        """Train an encoder once; a run that was stopped goes on, one that is finished is taken as it is.

        Args:
            name: Of the run, and its folder.
            **options: Of :class:`~pyg_dim.training.options.TrainOptions`.

        Returns:
            Its checkpoint.
        """
        checkpoint = self.runs / name / LAST
        wanted = TrainOptions(logdir=str(self.runs), name=name, **options)
        if checkpoint.exists():
            resumed = ResumedRun(str(checkpoint), wanted.model)
            # With the options of the architecture that were left to their defaults, as a run saves them.
            encoder = dict(models.build(wanted.model, **wanted.encoder).config)
            resumed.require_same_options(replace(wanted, encoder=encoder))
            if resumed.epochs_done >= wanted.epochs:
                return checkpoint
            wanted = replace(wanted, resume=str(checkpoint))
        _logger.info("pre-training %s", name)
        train(wanted)
        return checkpoint

    def representations(
        self, task: Task, checkpoint: Path, readouts: Sequence[str], trained: bool = True
    ) -> Mapping[str, np.ndarray]:
        """Vectors of the crystals of a task; see :func:`~pyg_dim.experiments.features.checkpoint_features`."""
        key = (*_crystals_of(task), checkpoint, tuple(readouts), trained)
        if key not in self._cache:
            self._cache[key] = checkpoint_features(checkpoint, task.dataset, task.rows, readouts, trained)
        return self._cache[key]

    def descriptors(self, task: Task, name: str) -> np.ndarray:
        """Descriptors of the crystals of a task; costly ones are kept in a file."""
        key = (*_crystals_of(task), name)
        if key not in self._cache:
            data = Path(task.dataset.report.source).name.split(".")[0]
            cache = self.directory / "descriptors" / f"{data}-{name}.parquet"
            cache.parent.mkdir(parents=True, exist_ok=True)
            self._cache[key] = descriptor_features(name, task.dataset, task.rows, cache, self.workers)
        return self._cache[key]

    def probe_table(self) -> FitTable:
        """The errors of all probes."""
        return FitTable(self.directory / f"probes-{self.split}.csv", probing.KEYS, probing.VALUES)

    def transfer_table(self) -> FitTable:
        """The errors of all fine-tuned encoders."""
        return FitTable(self.directory / f"transfer-{self.split}.csv", transferring.KEYS, transferring.VALUES)


def _crystals_of(task: Task) -> tuple[int, bytes]:
    """What tells the crystals of tasks apart: where labels are missing, those of one data set differ."""
    return id(task.dataset), task.rows.numpy().tobytes()
