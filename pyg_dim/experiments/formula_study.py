"""The parts that experiments on formulas share: sets, pre-training formulas, teacher, pre-trained encoders."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from pyg_dim.data import CompositionDataset, CrystalDataset, load_dataset
from pyg_dim.data.composition import composition_groups, composition_keys
from pyg_dim.data.embeddings import write_embeddings
from pyg_dim.data.index_sets import save_index_sets
from pyg_dim.data.replacing import replacing
from pyg_dim.experiments.features import checkpoint_features
from pyg_dim.experiments.formula_sets import SETS, SMALL_SETS, load_set
from pyg_dim.experiments.provenance import checksum, keep_to
from pyg_dim.experiments.scales import FORMULA_PRETRAINING, RECIPES, STRATEGIES, FormulaScale
from pyg_dim.experiments.tasks import Task, cross_task
from pyg_dim.experiments.workspace import Workspace

_logger = logging.getLogger(__name__)

Version = Literal["all", "unseen"]
FORMULA: Final = "formula"
TEACHER: Final = "teacher"
_HELD_OUT: Final = 0.05
"""Share of the crystals that the pre-training of the teacher is validated on."""


@dataclass(frozen=True, kw_only=True)
class FormulaStudy(Workspace):
    """The experiments of Huang et al. 2024: what they read, and how much of them is computed.

    Attributes:
        compositions: Folder of the sets, see :func:`~pyg_dim.experiments.formula_sets.load_set`.
        pool: Formulas to pre-train on, a CSV file.
        structures: Crystals that the teacher of the strategy MML is pre-trained on and has embeddings of.
        scale: How much is computed.
        sets: What is measured, names out of :data:`~pyg_dim.experiments.formula_sets.SETS`.
        elements: What Roost is told of the elements, see :class:`pyg_dim.models.Roost`.
        teacher: Checkpoint to take for the teacher; one is trained where None.
        split: "all": pre-training sees all formulas, as in the paper; "unseen": those of the sets are left out.
    """

    compositions: str
    pool: str
    structures: str
    scale: FormulaScale
    sets: tuple[str, ...] = SMALL_SETS
    elements: str = "magpie"
    teacher: Path | None = None
    split: Version = "all"

    @cached_property
    def tasks(self) -> list[Task]:
        """The sets with their official five folds."""
        datasets = {name: load_set(name, self.compositions) for name in self.sets}
        return [cross_task(name, dataset, SETS[name].label, "matbench") for name, dataset in datasets.items()]

    def pretrained(self, strategy: str) -> Path:
        """Checkpoint of Roost after pre-training.

        Args:
            strategy: A key of :data:`~pyg_dim.experiments.scales.STRATEGIES`.

        Returns:
            The checkpoint.
        """
        options: dict[str, Any] = FORMULA_PRETRAINING | STRATEGIES[strategy] | {"epochs": self.scale.epochs}
        options["encoder"] = options["encoder"] | {"elements": self.elements}
        if options["objective"] == "distillation":
            formulas, table = self._taught()
            options |= {"teacher": str(table), "limit": self.scale.formulas}
        else:
            formulas = self._formulas()
        return self.trained(f"{strategy}-{self.split}", data=str(formulas), **options)

    def keep_to_settings(self) -> None:
        """Make sure that the folder holds this experiment and no other.

        Raises:
            ValueError: It holds one of other data, of another scale, or of other formulas left out.
        """
        settings: dict[str, Any] = {
            "compositions": Path(self.compositions).name, "pool": Path(self.pool).name,
            "structures": Path(self.structures).name, "elements": Path(self.elements).name,
            "scale": asdict(self.scale), TEACHER: checksum(self.teacher) if self.teacher else None,
        }  # fmt: skip
        if self.split == "unseen":
            settings["sets left out"] = sorted(self.sets)
        keep_to(self.directory / "study.json", settings)

    def _wanted(self, dataset: CrystalDataset) -> Tensor:
        """[n] bool: what pre-training may see."""
        if self.split == "all":
            return torch.ones(len(dataset), dtype=torch.bool)
        tests = {key for task in self.tasks for key in composition_keys(task.dataset)}
        wanted = torch.tensor([key not in tests for key in composition_keys(dataset)])
        _logger.info(
            "%s: %d of %d have a formula of %s and are left out",
            dataset.report.source, int((~wanted).sum()), len(dataset), ", ".join(self.sets),
        )  # fmt: skip
        return wanted

    def _formulas(self) -> Path:
        """The formulas of pre-training, drawn once; both versions take them in the same random order."""
        path = self.directory / f"formulas-{self.split}.csv"
        if not path.exists():
            pool = CompositionDataset.from_csv(self.pool)
            order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
            rows = order[self._wanted(pool)[order]][: self.scale.formulas]
            _write_formulas(path, [pool.formula(row) for row in rows.tolist()])
            _logger.info("pre-training on %d of %d formulas of %s", rows.numel(), len(pool), self.pool)
        return path

    def _taught(self) -> tuple[Path, Path]:
        """The formulas that the teacher has embeddings of, and the table of these: means over crystals of a formula."""
        formulas, table = (self.directory / f"{TEACHER}-{self.split}{ending}" for ending in (".csv", ".parquet"))
        if not formulas.exists():
            crystals = load_dataset(self.structures)
            rows = self._wanted(crystals).nonzero()[:, 0]
            checkpoint = self.teacher or self._trained_teacher(crystals, rows)
            vectors = torch.from_numpy(checkpoint_features(checkpoint, crystals, rows, ("global",))["global"])[rows]
            of_formula = composition_groups(crystals.subset(rows))
            count = torch.bincount(of_formula)
            means = vectors.new_zeros(count.numel(), vectors.size(1)).index_add(0, of_formula, vectors) / count[:, None]
            text: dict[int, str] = {}
            for row, group in zip(rows.tolist(), of_formula.tolist(), strict=True):
                text.setdefault(group, crystals.formula(row))
            names = [text[group] for group in range(len(text))]
            write_embeddings(table, names, means, FORMULA)
            _write_formulas(formulas, names)
            _logger.info("the teacher has embeddings of %d crystals of %d formulas", rows.numel(), len(names))
        return formulas, table

    def _trained_teacher(self, crystals: CrystalDataset, rows: Tensor) -> Path:
        parts = self.directory / f"{TEACHER}-{self.split}.json"
        order = rows[torch.randperm(rows.numel(), generator=torch.Generator().manual_seed(0))][: self.scale.structures]
        held_out = max(1, round(_HELD_OUT * order.numel()))
        save_index_sets(
            parts, crystals, {"train": order[held_out:].sort().values, "val": order[:held_out].sort().values}
        )
        return self.trained(
            f"{TEACHER}-{self.split}",
            data=self.structures,
            split=str(parts.resolve()),
            epochs=self.scale.teacher_epochs,
            **RECIPES["dim"],
        )


def _write_formulas(path: Path, formulas: Sequence[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([[FORMULA], *([text] for text in formulas)])
