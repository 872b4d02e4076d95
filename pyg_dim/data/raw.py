"""Crystals as a reader found them, and the checks that every one has to pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from pyg_dim.data.report import ImportReport, LeftOut

_MIN_VOLUME_PER_SITE = 0.1
"""angstrom^3; the densest solids have some 5 angstrom^3 a site: less is a broken cell."""


ALREADY_TAKEN: Final = "identifier already taken"
"""Why a crystal is left out whose identifier another one has."""

Sites = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers [p] int64, Cartesian positions [p, 3] and cell [3, 3] (rows) in angstrom, of one crystal."""


class UnusableCrystalError(Exception):
    """A crystal that has to be left out.

    Args:
        reason: the kind of fault.
        detail: what is particular to this crystal.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass
class RawCrystals:
    """n crystals side by side in flat arrays, not yet checked.

    Args:
        ids: [n] strings.
        species_counts: [n] int64, number of species of each crystal.
        position_counts: [n] int64, number of positions of each crystal.
        z: [sum of species_counts] int64, atomic numbers, zero where the symbol is no known element.
        pos: [sum of position_counts, 3], Cartesian positions in angstrom.
        cell: [n, 3, 3], lattice vectors as rows, in angstrom.
        labels: name -> [n] float64, NaN where missing.
        foreign_symbols: entry of ``z`` -> the symbol that is no known element.
        units: name of a label -> its unit, where it is known.
    """

    ids: pa.Array
    species_counts: np.ndarray
    position_counts: np.ndarray
    z: np.ndarray
    pos: np.ndarray
    cell: np.ndarray
    labels: dict[str, np.ndarray]
    foreign_symbols: dict[int, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def select(self, kept: np.ndarray) -> RawCrystals:
        """Some of the crystals.

        Args:
            kept: [n] bool; those kept must have as many species as positions, all of them elements.

        Returns:
            The crystals that are kept, in the same order.
        """
        counts = self.species_counts[kept]
        species_start = np.cumsum(self.species_counts) - self.species_counts
        position_start = np.cumsum(self.position_counts) - self.position_counts
        return RawCrystals(
            ids=self.ids.filter(pa.array(kept)),
            species_counts=counts,
            position_counts=counts,
            z=self.z[ragged_index(species_start[kept], counts)],
            pos=self.pos[ragged_index(position_start[kept], counts)],
            cell=self.cell[kept],
            labels={name: values[kept] for name, values in self.labels.items()},
            units=self.units,
        )


def ragged_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Entries of several ranges, one range after the other.

    Args:
        starts: [n] int64, first entry of each range.
        counts: [n] int64, length of each range.

    Returns:
        [sum of counts] int64.
    """
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def keep_sound(raw: RawCrystals, report: ImportReport, max_sites: int) -> RawCrystals:
    """Leave out the crystals that are no usable crystal, or have an infinite label, and enter them into the report.

    Args:
        raw: crystals as read.
        report: the report of the reader; changed in place.
        max_sites: largest number of sites.

    Returns:
        The sound crystals, in the same order; there may be none.
    """
    n = len(raw.ids)
    species_start = np.cumsum(raw.species_counts) - raw.species_counts
    reasons: dict[int, tuple[str, str]] = {}

    def mark(mask: np.ndarray, reason: str, detail: dict[int, str] | None = None) -> None:
        for row in np.flatnonzero(mask).tolist():
            reasons.setdefault(row, (reason, (detail or {}).get(row, "")))

    def any_entry(bad: np.ndarray, counts: np.ndarray) -> np.ndarray:
        # Nearly always there is none.
        return np.bincount(np.repeat(np.arange(n), counts)[bad], minlength=n) > 0 if bad.any() else np.zeros(n, bool)

    mark(raw.species_counts == 0, "no sites")
    mark(raw.species_counts != raw.position_counts, "number of species differs from number of positions")
    foreign_rows = np.searchsorted(species_start + raw.species_counts, list(raw.foreign_symbols), side="right").tolist()
    mark(
        any_entry(raw.z == 0, raw.species_counts),
        "unknown or unsupported element",
        dict(zip(foreign_rows, raw.foreign_symbols.values(), strict=True)),
    )
    mark(any_entry(~np.isfinite(raw.pos).all(axis=1), raw.position_counts), "a position is not finite")
    finite_cell = np.isfinite(raw.cell).all(axis=(1, 2))
    mark(~finite_cell, "the cell is not finite")
    volume = np.abs(np.linalg.det(np.where(finite_cell[:, None, None], raw.cell, 0.0).astype(np.float64)))
    mark(
        volume < _MIN_VOLUME_PER_SITE * raw.species_counts,
        f"the cell has less than {_MIN_VOLUME_PER_SITE} cubic angstrom a site",
    )
    large = np.flatnonzero(raw.species_counts > max_sites).tolist()
    sizes = {row: str(raw.species_counts[row]) for row in large}
    mark(raw.species_counts > max_sites, f"more than {max_sites} sites", sizes)
    for name, values in raw.labels.items():
        infinite = np.flatnonzero(np.isinf(values)).tolist()
        mark(np.isinf(values), "non-finite label", {row: f"{name} = {values[row]}" for row in infinite})
    sound = np.ones(n, dtype=bool)
    sound[list(reasons)] = False
    # A repeated identifier could not be told apart in tables of results. The first sound crystal keeps it.
    candidates = np.flatnonzero(sound)
    _, first = np.unique(np.asarray(raw.ids.dictionary_encode().indices)[candidates], return_index=True)
    repeated = sound.copy()
    repeated[candidates[first]] = False
    mark(repeated, ALREADY_TAKEN)
    sound &= ~repeated

    report.left_out += [LeftOut(raw.ids[row].as_py(), *reasons[row]) for row in sorted(reasons)]
    return raw if sound.all() else raw.select(sound)
