"""The composition sets of Matbench that Roost is measured on, by their short names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from pyg_dim.data import CompositionDataset, CrystalDataset


@dataclass(frozen=True)
class FormulaSet:
    """A task of Matbench v0.1 without its structures.

    Attributes:
        task: Its name there, and that of its file.
        label: What is predicted.
        unit: Its unit, empty where it has none.
        rows: Formulas, in the official order, which the folds go by.
    """

    task: str
    label: str
    unit: str
    rows: int


SETS: Final = {
    "steels": FormulaSet("matbench_steels", "yield strength", "MPa", 312),
    "jdft2d": FormulaSet("matbench_jdft2d", "exfoliation energy", "meV/atom", 636),
    "phonons": FormulaSet("matbench_phonons", "last phdos peak", "1/cm", 1265),
    "dielectric": FormulaSet("matbench_dielectric", "refractive index", "", 4764),
    "log_gvrh": FormulaSet("matbench_log_gvrh", "shear modulus", "log10 GPa", 10987),
    "log_kvrh": FormulaSet("matbench_log_kvrh", "bulk modulus", "log10 GPa", 10987),
    "perovskites": FormulaSet("matbench_perovskites", "formation energy", "eV/cell", 18928),
    "mp_gap": FormulaSet("matbench_mp_gap", "band gap", "eV", 106113),
    "mp_e_form": FormulaSet("matbench_mp_e_form", "formation energy", "eV/atom", 132752),
}
"""By the names of Huang, Magar, Barati Farimani, J. Chem. Inf. Model. 2024, 64, 627, table 1."""
SMALL_SETS: Final = ("steels", "jdft2d", "phonons", "dielectric")
"""Those of table 4, on which the paper finds pre-training to help most."""


def load_set(name: str, folder: str | Path) -> CompositionDataset:
    """Read a set from a file, or fetch it through matminer where there is none.

    Args:
        name: Out of :data:`SETS`.
        folder: Where ``matbench_....csv`` (or ``.csv.gz``) lies, with a column of formulas and one of the label.

    Returns:
        All rows in the official order, with the label under its name and unit.

    Raises:
        FileNotFoundError: No such file, and matminer is not installed or cannot download the set.
        ValueError: An unknown name, or a file with other rows or labels than the set has.
    """
    if name not in SETS:
        raise ValueError(f"unknown set {name!r}; known: {', '.join(SETS)}")
    about = SETS[name]
    paths = [Path(folder) / (about.task + ending) for ending in (".csv", ".csv.gz")]
    path = next((path for path in paths if path.is_file()), None)
    dataset = _fetch(about, paths[0]) if path is None else CompositionDataset.from_csv(path)
    if (len(dataset), dataset.report.num_read, len(dataset.labels)) != (about.rows, about.rows, 1):
        raise ValueError(
            f"{dataset.report.source} has {len(dataset)} usable formulas and {len(dataset.labels)} columns of numbers; "
            f"{about.task} has {about.rows} formulas and one label, and its folds need them all in their order"
        )
    (values,) = dataset.labels.values()
    dataset.labels = {about.label: values}
    dataset.units = {about.label: about.unit}
    return dataset


def _fetch(about: FormulaSet, path: Path) -> CompositionDataset:
    try:
        from matminer.datasets import load_dataset
    except ImportError as error:
        raise FileNotFoundError(
            f"there is no {path}, and matminer is not installed: put the file there (columns formula and target, rows "
            "in the official order), or install matminer (pip install 'pyg-dim[baselines]')"
        ) from error
    try:
        table = load_dataset(about.task)
    # The loader raises whatever the network, the disk or the checksum makes it raise.
    except Exception as error:
        raise FileNotFoundError(
            f"there is no {path}, and matminer could not fetch {about.task} ({error}): put the file there"
        ) from error
    source = "composition" if "composition" in table.columns else "structure"
    (label,) = (column for column in table.columns if column != source)
    dataset = CompositionDataset.from_formulas(
        [_formula(value) for value in table[source]], labels={label: table[label].tolist()}
    )
    dataset.report.source = about.task
    return dataset


def _formula(value: Any) -> str:
    """The formula of what matminer holds: a text, a composition or a structure."""
    value = getattr(value, "composition", value)
    return str(getattr(value, "formula", value)).replace(" ", "")


def mean_sites(dataset: CrystalDataset) -> float:
    """Elements of a formula, on average."""
    return float(torch.diff(dataset.ptr).double().mean())
