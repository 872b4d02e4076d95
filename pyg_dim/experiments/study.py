"""The parts that figures share: data, folds, pre-trained encoders, vectors, tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch

from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.data.composition import composition_keys
from pyg_dim.data.index_sets import save_index_sets
from pyg_dim.data.splits import split
from pyg_dim.experiments.folds import Fold, make_fold
from pyg_dim.experiments.provenance import keep_to
from pyg_dim.experiments.scales import ABLATIONS, LEVERS, RECIPES, Scale
from pyg_dim.experiments.tasks import Task, cross_task, fold_task
from pyg_dim.experiments.workspace import Workspace

_logger = logging.getLogger(__name__)

FORMATION: Final = "formation_energy_per_atom"
GAP: Final = "band_gap"
PHONONS: Final = "last phdos peak"
MORE: Final = "more"
"""The recipe ``combined`` on the crystals of :attr:`Study.unlabelled`."""
SplitName = Literal["random", "formula"]
_HELD_OUT: Final = 0.05
"""Share of these crystals that their pre-training is validated on."""


@dataclass(frozen=True, kw_only=True)
class Study(Workspace):
    """The experiments of Moran et al. 2025: what they read, and how much of them is computed.

    Attributes:
        data: Crystals to pre-train on, with formation energies and band gaps.
        phonons: Crystals of matbench_phonons.
        scale: How much is computed.
        split: "random", the protocol of the paper; "formula": no formula of a test is in pre-training or among the
            labels.
        unlabelled: More crystals to pre-train on, for the recipe ``more``; None for none.
    """

    data: str
    phonons: str
    scale: Scale
    split: SplitName = "random"
    unlabelled: str | None = None

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

    def development_tasks(self) -> list[Task]:
        """Formation energy and band gap, measured on the held-out part of the training fold instead of the test."""
        fold, pool = self.fold, self.scale.pool
        return [fold_task(name, self.crystals, name, fold.train, fold.dev, pool) for name in (FORMATION, GAP)]

    def _task(self, name: str) -> Task:
        if name == PHONONS:
            return cross_task(name, self.phonon_crystals, name, "matbench" if self.split == "random" else "formula")
        return fold_task(name, self.crystals, name, self.fold.train, self.fold.test, self.scale.pool)

    def run(self, name: str, **changes: Any) -> Path:
        """Train an encoder on the training fold, once; see :meth:`Workspace.trained`.

        Args:
            name: Of the run.
            **changes: Options of :class:`~pyg_dim.training.options.TrainOptions`.

        Returns:
            Its checkpoint.
        """
        return self.trained(f"{name}-{self.split}", data=self.data, split=str(self._fold_file()), **changes)

    def pretrained(self, recipe: str) -> Path:
        """Checkpoint of a recipe on the training fold, or of :data:`MORE`.

        No formula of a test crystal of either version, nor of ``phonons``, is trained on for :data:`MORE`; so one
        encoder serves both.

        Args:
            recipe: A key of :data:`~pyg_dim.experiments.scales.RECIPES`, or :data:`MORE`.

        Returns:
            The checkpoint.

        Raises:
            ValueError: :data:`MORE` without ``unlabelled``.
        """
        if recipe == MORE:
            if self.unlabelled is None:
                raise ValueError("more crystals to pre-train on are not known: give --unlabelled")
            changes = RECIPES["combined"] | {"split": str(self._parts_of_more()), "epochs": self.scale.more_epochs}
            return self.trained(MORE, data=self.unlabelled, **changes)
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

    def levered(self, name: str) -> Path:
        """Checkpoint of an encoder that differs from ``combined`` in one lever, on fewer crystals.

        Args:
            name: A key of :data:`~pyg_dim.experiments.scales.LEVERS`.

        Returns:
            The checkpoint.
        """
        changes = {"limit": self.scale.ablation_crystals, "epochs": self.scale.lever_epochs}
        return self.run(f"lever-{name}".replace(" ", "-"), **(RECIPES["combined"] | changes | LEVERS[name]))

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

    def keep_to_settings(self) -> None:
        """Make sure that the folder holds this experiment and no other.

        Raises:
            ValueError: It holds one of other data or of another scale.
        """
        scale = asdict(self.scale)
        # Younger than the others, and alone: folders from before it are gone on with.
        levers = scale.pop("lever_epochs")
        settings = {
            "data": Path(self.data).name, "phonons": Path(self.phonons).name, "scale": scale, "lever_epochs": levers,
        }  # fmt: skip
        if self.unlabelled is not None:
            settings["unlabelled"] = Path(self.unlabelled).name
        keep_to(self.directory / "study.json", settings)

    def _parts_of_more(self) -> Path:
        path = (self.directory / f"parts-{MORE}.json").resolve()
        if not path.exists():
            crystals = load_dataset(str(self.unlabelled))
            tests = set(composition_keys(self.phonon_crystals))
            rules: tuple[SplitName, ...] = ("random", "formula")
            for rule in rules:
                tests |= set(composition_keys(self.crystals.subset(make_fold(self.crystals, rule).test)))
            rows = torch.tensor([key not in tests for key in composition_keys(crystals)]).nonzero()[:, 0]
            _logger.info("%s: %d of %d have a formula of a test and are left out", self.unlabelled,
                         len(crystals) - rows.numel(), len(crystals))  # fmt: skip
            self.directory.mkdir(parents=True, exist_ok=True)
            train, val = (rows[part] for part in split(crystals.subset(rows), _HELD_OUT))
            save_index_sets(path, crystals, {"train": train, "val": val})
        return path

    def _fold_file(self) -> Path:
        path = (self.directory / f"fold-{self.split}.json").resolve()
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.fold.save(path, self.crystals)
        return path
