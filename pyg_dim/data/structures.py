"""Crystals from objects in memory: pymatgen Structures, their dictionaries, ASE Atoms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pyg_dim.data.elements import MAX_Z, atomic_numbers
from pyg_dim.data.overlap import MIN_DISTANCE, overlap
from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport, LeftOut

_SYMPREC: Final = 1e-3
"""angstrom; how exactly sites must be repeated for a cell to be reduced to a smaller one."""

_FULL: Final = 1e-6
"""How far from one an occupancy may be."""


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


Sites = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers [p], Cartesian positions [p, 3] and cell [3, 3] of one crystal."""


def sites_of(structure: Any) -> Sites:
    """Sites of a pymatgen Structure, its dictionary, or ASE Atoms.

    Args:
        structure: the crystal.

    Returns:
        Atomic numbers, positions in angstrom and lattice vectors as rows, in angstrom.

    Raises:
        UnusableCrystalError: partial occupancy, an unknown element, no three-dimensional period, or none of the known
        types.
    """
    if isinstance(structure, Mapping):
        return _sites_of_dictionary(structure)
    if hasattr(structure, "lattice") and hasattr(structure, "as_dict"):
        return _sites_of_dictionary(structure.as_dict())
    if hasattr(structure, "get_atomic_numbers"):
        if not all(structure.pbc):
            raise UnusableCrystalError("not periodic in three directions")
        return _known(structure.get_atomic_numbers()), structure.get_positions(), np.array(structure.cell)
    raise UnusableCrystalError("neither a pymatgen Structure nor ASE Atoms", type(structure).__name__)


def _known(numbers: np.ndarray) -> np.ndarray:
    unknown = numbers[(numbers < 1) | (numbers > MAX_Z)]
    if len(unknown):
        raise UnusableCrystalError("unknown or unsupported element", f"atomic number {unknown[0]}")
    return numbers.astype(np.int64)


def _sites_of_dictionary(structure: Mapping[str, Any]) -> Sites:
    # This form is stable across versions of pymatgen, and reading it is much faster than building objects from it.
    try:
        cell = np.array(structure["lattice"]["matrix"], dtype=np.float64)
        fractional = np.array([site["abc"] for site in structure["sites"]], dtype=np.float64).reshape(-1, 3)
        species = [site["species"] for site in structure["sites"]]
        numbers = np.empty(len(species), dtype=np.int64)
        for k, occupants in enumerate(species):
            if len(occupants) != 1 or abs(occupants[0]["occu"] - 1) > _FULL:
                text = " ".join(f"{item['element']}:{item['occu']:g}" for item in occupants)
                raise UnusableCrystalError("partial occupancy", text or "an empty site")
            symbol = occupants[0]["element"]
            if symbol not in atomic_numbers():
                raise UnusableCrystalError("unknown or unsupported element", symbol)
            numbers[k] = atomic_numbers()[symbol]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableCrystalError("no pymatgen structure dictionary", repr(error)) from error
    if cell.shape != (3, 3):
        raise UnusableCrystalError("no pymatgen structure dictionary", f"lattice of shape {cell.shape}")
    return numbers, fractional @ cell, cell


def primitive_cell(sites: Sites) -> Sites:
    """Reduce a cell to the primitive one where it repeats itself; else return it as it is.

    Args:
        sites: atomic numbers, positions and cell.

    Returns:
        The same crystal, not rotated, in a cell without inner translations (to 0.001 angstrom; found by spglib).
    """
    import spglib

    numbers, pos, cell = sites
    # An inner translation maps sites onto others of the same element, so it divides the count of each element.
    if np.gcd.reduce(np.unique(numbers, return_counts=True)[1]) < 2:
        return sites
    if not (np.isfinite(pos).all() and np.isfinite(cell).all()) or abs(np.linalg.det(cell)) < _FULL:
        return sites
    try:
        found = spglib.standardize_cell(
            (cell.tolist(), (pos @ np.linalg.inv(cell)).tolist(), numbers.tolist()),
            to_primitive=True,
            no_idealize=True,
            symprec=_SYMPREC,
        )
    except spglib.SpglibError:
        # Newer versions raise where older ones return None, for example for coinciding sites.
        found = None
    if found is None or len(found[2]) >= len(numbers):
        return sites
    smaller = np.asarray(found[0], dtype=np.float64)
    return np.asarray(found[2], dtype=np.int64), np.asarray(found[1], dtype=np.float64) @ smaller, smaller


def collect(
    crystals: Iterable[tuple[str, Any]], labels: Mapping[str, Sequence[float]], report: ImportReport
) -> RawCrystals:
    """Lay crystals side by side, in their primitive cells; those that cannot be used enter the report.

    Left out are structures that :func:`sites_of` cannot take, and those with sites nearer than 0.5 angstrom.

    Args:
        crystals: n pairs of identifier and structure, or the :class:`UnusableCrystalError` that a reader met instead.
        labels: name -> n values.
        report: changed in place.

    Returns:
        The usable crystals.

    Raises:
        ValueError: there is none; the message holds the report.
    """
    ids, kept, found, reduced = [], [], [], 0
    for row, (name, structure) in enumerate(crystals):
        report.num_read += 1
        try:
            if isinstance(structure, UnusableCrystalError):
                raise structure
            sites = sites_of(structure)
            primitive = primitive_cell(sites)
            distance = overlap(*primitive[1:])
            if distance is not None:
                raise UnusableCrystalError(f"sites nearer than {MIN_DISTANCE} Å", f"{distance:.3f} Å")
        except UnusableCrystalError as fault:
            report.left_out.append(LeftOut(name, fault.reason, fault.detail))
            continue
        reduced += primitive is not sites
        ids.append(name)
        kept.append(row)
        found.append(primitive)
    if not found:
        raise ValueError(f"no usable crystal\n{report}")
    if reduced:
        report.notes.append(f"{reduced} cells reduced to the primitive cell")
    counts = np.array([len(z) for z, _, _ in found], dtype=np.int64)
    return RawCrystals(
        ids=pa.array(ids, pa.string()),
        species_counts=counts,
        position_counts=counts,
        z=np.concatenate([z for z, _, _ in found]),
        pos=np.concatenate([pos for _, pos, _ in found]),
        cell=np.stack([cell for _, _, cell in found]),
        labels={name: np.asarray(values, dtype=np.float64)[kept] for name, values in labels.items()},
    )
