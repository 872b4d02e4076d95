"""The checks that every crystal has to pass on its way in, many crystals at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pyg_dim.data.overlap import MIN_DISTANCE, overlaps
from pyg_dim.data.parquet import DEPTHS, ID
from pyg_dim.data.primitive import SYMPREC, may_be_reduced, primitive_cell
from pyg_dim.data.raw import RawCrystals, Sites, UnusableCrystalError, keep_sound
from pyg_dim.data.report import ImportReport, LeftOut, NotNumbers, printable
from pyg_dim.data.sources.base import Entry
from pyg_dim.data.sources.parse import parse


@dataclass(frozen=True)
class ImportOptions:
    """What an import does to crystals.

    Args:
        max_sites: crystals with more sites (in the primitive cell) are left out.
        primitive: whether cells that repeat themselves are reduced to the primitive cell.
        symprec: how exactly sites must be repeated for that, in angstrom.
    """

    max_sites: int
    primitive: bool = True
    symprec: float = SYMPREC

    def __post_init__(self) -> None:
        if self.max_sites < 1:
            raise ValueError(f"max_sites must be at least 1, not {self.max_sites}")
        if not 0 < self.symprec < MIN_DISTANCE:
            raise ValueError(f"symprec must lie between 0 and {MIN_DISTANCE} Å, not at {self.symprec}")


def collect(entries: Iterable[Entry], options: ImportOptions, report: ImportReport) -> RawCrystals:
    """Lay crystals side by side, in their primitive cells; those that cannot be used enter the report.

    Left out are entries that cannot be parsed, crystals with sites nearer than 0.5 angstrom, and what
    :func:`pyg_dim.data.raw.keep_sound` refuses.

    Args:
        entries: the crystals.
        options: what is done to them.
        report: changed in place.

    Returns:
        The usable crystals, in the same order; there may be none.
    """
    order: dict[str, int] = {}
    before = len(report.left_out)
    ids: list[str] = []
    found: list[Sites] = []
    labels: list[Mapping[str, Any]] = []
    for entry in entries:
        report.num_read += 1
        entry = entry._replace(id=printable(entry.id))
        order.setdefault(entry.id, len(order))
        try:
            sites, remark = parse(entry)
        except UnusableCrystalError as fault:
            report.left_out.append(LeftOut(entry.id, fault.reason, printable(fault.detail)))
            continue
        if remark:
            report.remarks.setdefault(remark, []).append(entry.id)
        ids.append(entry.id)
        found.append(sites)
        labels.append(entry.labels)
    raw = _lay_out(ids, found, _label_arrays(ids, labels, report))
    reduced: set[str] = set()
    if options.primitive:
        raw, rows = _reduce(raw, found, options.symprec)
        reduced = {ids[row] for row in rows}
    nearest = overlaps(raw.pos, raw.cell, raw.species_counts)
    near = np.isfinite(nearest)
    if near.any():
        for row in np.flatnonzero(near).tolist():
            report.left_out.append(LeftOut(ids[row], f"sites nearer than {MIN_DISTANCE} Å", f"{nearest[row]:.3f} Å"))
        raw = raw.select(~near)
    raw = keep_sound(raw, report, options.max_sites)
    report.num_reduced += len(reduced.intersection(raw.ids.to_pylist()))
    report.left_out[before:] = sorted(report.left_out[before:], key=lambda item: order[item.id])
    return raw


def _lay_out(ids: list[str], found: list[Sites], labels: dict[str, np.ndarray]) -> RawCrystals:
    # With an empty crystal in front, there is something to join where all were left out.
    nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 3)), np.zeros((3, 3))
    z, pos, cell = zip(nothing, *found, strict=True)
    counts = np.array([len(numbers) for numbers in z[1:]], dtype=np.int64)
    return RawCrystals(
        ids=pa.array(ids, pa.string()),
        species_counts=counts,
        position_counts=counts,
        z=np.concatenate(z),
        pos=np.concatenate(pos).astype(np.float64, copy=False),
        cell=np.stack(cell)[1:].astype(np.float64, copy=False),
        labels=labels,
    )


def _reduce(raw: RawCrystals, found: list[Sites], symprec: float) -> tuple[RawCrystals, list[int]]:
    """The crystals in their primitive cells, and the rows of those that had another one."""
    reduced: list[int] = []
    for row in np.flatnonzero(may_be_reduced(raw.z, raw.pos, raw.cell, raw.species_counts, symprec)).tolist():
        smaller = primitive_cell(found[row], symprec)
        if smaller is not found[row]:
            found[row] = smaller
            reduced.append(row)
    return (_lay_out(raw.ids.to_pylist(), found, raw.labels) if reduced else raw), reduced


def _label_arrays(ids: list[str], rows: list[Mapping[str, Any]], report: ImportReport) -> dict[str, np.ndarray]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = {}
    for name in names:
        if name in (ID, *DEPTHS):
            report.notes.append(f"column {name!r} was not read: a label cannot have this name; give it another")
            continue
        values = np.full(len(rows), np.nan)
        texts: list[str] = []
        for k, row in enumerate(rows):
            value = _label(row.get(name))
            if value is None:
                texts.append(f"{ids[k]}: {printable(str(row[name]))[:40]}")
            else:
                values[k] = value
        if texts:
            report.not_numbers.setdefault(printable(name), NotNumbers()).add(len(texts), texts)
        arrays[printable(name)] = values
    return arrays


def _label(value: Any) -> float | None:
    """A label as a number, NaN where it is missing; None where it is something else."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, str) and "_" in value:
        return None  # a number to Python alone
    try:
        return float(value)
    except OverflowError:
        # JSON holds whole numbers of any size.
        return math.inf
    except (TypeError, ValueError):
        return None
