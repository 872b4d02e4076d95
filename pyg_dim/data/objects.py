"""Crystals from a list of objects in memory and files, or formulas from a list, each of which may be unusable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pyg_dim.data.collect import ImportOptions, collect
from pyg_dim.data.compositions import CompositionDataset
from pyg_dim.data.dataset import CrystalDataset, Oxidation
from pyg_dim.data.formula import MALFORMED, parse_formulas
from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.report import ImportReport, LeftOut, printable
from pyg_dim.data.sources.base import Entry
from pyg_dim.data.sources.files import kind_of


def read_objects(
    objects: Sequence[Any],
    max_sites: int,
    oxidation: Oxidation = "zero",
    dtype: torch.dtype = torch.float32,
) -> tuple[CrystalDataset | None, dict[int, LeftOut]]:
    """Make a data set of what can be used of a list; cells that repeat themselves are reduced to the primitive cell.

    Args:
        objects: pymatgen Structures, their dictionaries, ASE Atoms, and paths of CIF or POSCAR files, in any mixture.
        max_sites: crystals with more primitive sites cannot be used.
        oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
        dtype: floating-point type of positions and cells.

    Returns:
        The data set, whose identifiers are places in the list, in order; None where nothing can be used. And place ->
        why that one cannot.
    """
    report = ImportReport("objects in memory")
    raw = collect(_entries(objects), ImportOptions(max_sites), report)
    faults = {int(item.id): item for item in report.left_out}
    dataset = CrystalDataset.from_sound(raw, report, oxidation, dtype) if len(raw.ids) else None
    return dataset, faults


def are_formulas(objects: Sequence[Any]) -> bool:
    """Whether a list is one of formulas.

    Args:
        objects: what :func:`read_objects` or :func:`read_formulas` takes.

    Returns:
        True where it holds a text that is no name of a CIF or POSCAR file.
    """
    return any(isinstance(item, str) and kind_of(Path(item).name) is None for item in objects)


def read_formulas(
    formulas: Sequence[Any], dtype: torch.dtype = torch.float32
) -> tuple[CompositionDataset | None, dict[int, LeftOut]]:
    """Make a data set of what can be used of a list of formulas.

    Args:
        formulas: texts, see :func:`pyg_dim.data.formula.parse_formulas`; anything else cannot be used.
        dtype: floating-point type of the amounts.

    Returns:
        The data set, whose identifiers are places in the list, in order; None where nothing can be used. And place ->
        why that one cannot.
    """
    texts = {place: item for place, item in enumerate(formulas) if isinstance(item, str)}
    reasons = {
        place: (MALFORMED, f"a {type(item).__name__}") for place, item in enumerate(formulas) if place not in texts
    }
    places = list(texts)
    reasons |= {places[row]: fault for row, fault in parse_formulas(list(texts.values())).faults.items()}
    faults = {place: LeftOut(str(place), reason, printable(detail)[:80]) for place, (reason, detail) in reasons.items()}
    sound = {str(place): text for place, text in texts.items() if place not in faults}
    dataset = CompositionDataset.from_formulas(list(sound.values()), list(sound), dtype=dtype) if sound else None
    return dataset, faults


def _entries(objects: Sequence[Any]) -> Iterator[Entry]:
    for place, item in enumerate(objects):
        if not isinstance(item, str | Path):
            yield Entry(str(place), "structure", item, {})
            continue
        path = Path(item)
        if kind := kind_of(path.name):
            yield Entry(str(place), kind, path, {})
        else:
            fault = UnusableCrystalError("no path of a CIF or POSCAR file", str(item)[:200])
            yield Entry(str(place), "fault", fault, {})
