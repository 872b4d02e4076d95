"""The parts that figures share: data, folds, pre-trained encoders, vectors, tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from pyg_dim import models
from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.experiments import probing, transferring
from pyg_dim.experiments.features import checkpoint_features, descriptor_features
from pyg_dim.experiments.folds import Fold, make_fold
from pyg_dim.experiments.provenance import keep_to
from pyg_dim.experiments.scales import ABLATIONS, RECIPES, Scale
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task, cross_task, fold_task
from pyg_dim.training.checkpoints import LAST
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.resume import ResumedRun
from pyg_dim.training.run import train

_logger = logging.getLogger(__name__)

FORMATION: Final = "formation_energy_per_atom"
GAP: Final = "band_gap"
PHONONS: Final = "last phdos peak"
SplitName = Literal["random", "formula"]


@dataclass(frozen=True)
class Study:
    """Where an experiment reads and writes, and how much of it is computed.

    Attributes:
        data: Crystals to pre-train on, with formation energies and band gaps.
        phonons: Crystals of matbench_phonons.
        directory: Where runs, tables and pictures go.
        scale: How much is computed.
        split: "random", the protocol of the paper; "formula": no formula of a test is in pre-training or among the
            labels.
        workers: Processes of probes and fine-tuning.
    """

    data: str
    phonons: str
    directory: Path
    scale: Scale
    split: SplitName = "random"
    workers: int = 1
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def crystals(self) -> CrystalDataset:
        """The crystals of ``data``."""
        return load_dataset(self.data)

    @cached_property
    def phonon_crystals(self) -> CrystalDataset:
        """The crystals of ``phonons``."""
        return load_dataset(self.phonons)

    @cached_property
    def fold(self) -> Fold:
        """Parts of ``data``; by formula, none of ``phonons`` is trained on either."""
        without = [self.phonon_crystals] if self.split == "formula" else []
        return make_fold(self.crystals, self.split, without=without)

    def tasks(self, names: Sequence[str] = (FORMATION, GAP, PHONONS)) -> list[Task]:
        """What is predicted.

        Args:
            names: Out of :data:`FORMATION`, :data:`GAP` and :data:`PHONONS`.

        Returns:
            The tasks. Labels of ``data`` are drawn from a part of the training fold and measured on the whole test
            fold; those of ``phonons`` are measured on five folds in turn.
        """
        return [self._task(name) for name in names]

    def _task(self, name: str) -> Task:
        if name == PHONONS:
            return cross_task(name, self.phonon_crystals, name, "matbench" if self.split == "random" else "formula")
        return fold_task(name, self.crystals, name, self.fold.train, self.fold.test, self.scale.pool)

    def run(self, name: str, **changes: Any) -> Path:
        """Train an encoder once; a run that was stopped goes on, one that is finished is taken as it is.

        Args:
            name: Of the run, and its folder.
            **changes: Options of :class:`~pyg_dim.training.options.TrainOptions`.

        Returns:
            Its checkpoint.
        """
        name = f"{name}-{self.split}"
        checkpoint = self.directory / "runs" / name / LAST
        options = TrainOptions(
            data=self.data, split=str(self._fold_file()), logdir=str(self.directory / "runs"), name=name, **changes
        )
        if checkpoint.exists():
            resumed = ResumedRun(str(checkpoint), options.model)
            # With the options of the architecture that were left to their defaults, as a run saves them.
            encoder = dict(models.build(options.model, **options.encoder).config)
            resumed.require_same_options(replace(options, encoder=encoder))
            if resumed.epochs_done >= options.epochs:
                return checkpoint
            options = replace(options, resume=str(checkpoint))
        _logger.info("pre-training %s", name)
        train(options)
        return checkpoint

    def pretrained(self, recipe: str) -> Path:
        """Checkpoint of a recipe on the training fold.

        Args:
            recipe: A key of :data:`~pyg_dim.experiments.scales.RECIPES`.

        Returns:
            The checkpoint.
        """
        return self.run(recipe, limit=self.scale.crystals, epochs=self.scale.epochs, **RECIPES[recipe])

    def ablated(self, name: str) -> Path:
        """Checkpoint of an encoder of the ablation.

        Args:
            name: A key of :data:`~pyg_dim.experiments.scales.ABLATIONS`.

        Returns:
            The checkpoint.
        """
        changes = {"limit": self.scale.ablation_crystals, "epochs": self.scale.ablation_epochs}
        folder = f"ablation-{name}".replace(", ", "-").replace(" ", "-").replace("+", "-")
        return self.run(folder, **(RECIPES["dim"] | changes | ABLATIONS[name]))

    def supervised(self, target: str) -> Path:
        """Checkpoint of a model that was trained on all labels of the training fold.

        Args:
            target: The label.

        Returns:
            The checkpoint.
        """
        changes = {"objective": "supervised", "target": target, "limit": self.scale.crystals,
                   "epochs": self.scale.supervised_epochs}  # fmt: skip
        return self.run(f"supervised-{target}", **(RECIPES["combined"] | changes))

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

    def keep_to_settings(self) -> None:
        """Make sure that the folder holds this experiment and no other.

        Raises:
            ValueError: It holds one of other data or of another scale.
        """
        settings = {"data": Path(self.data).name, "phonons": Path(self.phonons).name, "scale": asdict(self.scale)}
        keep_to(self.directory / "study.json", settings)

    def probe_table(self) -> FitTable:
        """The errors of all probes."""
        return FitTable(self.directory / f"probes-{self.split}.csv", probing.KEYS, probing.VALUES)

    def transfer_table(self) -> FitTable:
        """The errors of all fine-tuned encoders."""
        return FitTable(self.directory / f"transfer-{self.split}.csv", transferring.KEYS, transferring.VALUES)

    def _fold_file(self) -> Path:
        path = (self.directory / f"fold-{self.split}.json").resolve()
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.fold.save(path, self.crystals)
        return path


def _crystals_of(task: Task) -> tuple[int, bytes]:
    """What tells the crystals of tasks apart: where labels are missing, those of one data set differ."""
    return id(task.dataset), task.rows.numpy().tobytes()
