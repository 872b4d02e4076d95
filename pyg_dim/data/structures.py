"""Crystals from objects in memory: pymatgen Structures, their dictionaries, ASE Atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pyg_dim.data.elements import MAX_Z, atomic_numbers
from pyg_dim.data.raw import Sites, UnusableCrystalError

_FULL: Final = 1e-6
"""How far from one an occupancy may be."""


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
        _require_full_occupancy(structure.info.get("occupancy"))
        return _known(structure.get_atomic_numbers()), structure.get_positions(), np.array(structure.cell)
    raise UnusableCrystalError("neither a pymatgen Structure nor ASE Atoms", type(structure).__name__)


def _require_full_occupancy(occupancy: Any) -> None:
    # What ASE's CIF reader leaves behind: for each kind of site, its elements and their shares.
    for shares in occupancy.values() if isinstance(occupancy, Mapping) else ():
        if isinstance(shares, Mapping) and not all(_is_full(share) for share in shares.values()):
            raise UnusableCrystalError("partial occupancy", " ".join(f"{k}:{v}" for k, v in shares.items())[:200])


def _is_full(share: Any) -> bool:
    # What is no number, or NaN, is not known to be full.
    return isinstance(share, int | float) and abs(share - 1) <= _FULL


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
            if len(occupants) != 1 or not _is_full(occupants[0]["occu"]):
                text = " ".join(f"{item['element']}:{item['occu']}" for item in occupants)[:200]
                raise UnusableCrystalError("partial occupancy", text or "an empty site")
            symbol = occupants[0]["element"]
            if symbol not in atomic_numbers():
                raise UnusableCrystalError("unknown or unsupported element", symbol)
            numbers[k] = atomic_numbers()[symbol]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableCrystalError("no pymatgen structure dictionary", repr(error)) from error
    if cell.shape != (3, 3):
        raise UnusableCrystalError("no pymatgen structure dictionary", f"lattice of shape {cell.shape}")
    if not all(structure["lattice"].get("pbc", (True,))):
        raise UnusableCrystalError("not periodic in three directions")
    return numbers, fractional @ cell, cell
