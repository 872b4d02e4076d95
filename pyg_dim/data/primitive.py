"""Reduction of cells that repeat themselves to primitive ones."""

from __future__ import annotations

from typing import Final

import numpy as np

from pyg_dim.data.raw import Sites, ragged_index

SYMPREC: Final = 1e-3
"""angstrom; how exactly sites must be repeated for a cell to be reduced to a smaller one."""

MAX_REDUCIBLE: Final = 2000
"""Sites; a larger cell is taken as it is, because looking for its symmetry would take minutes."""

_MIN_VOLUME: Final = 1e-6
"""angstrom^3; a smaller cell counts as flat."""

_MAX_VOLUME: Final = 1e30
"""angstrom^3; beyond it, numbers are no crystal."""

_SLACK: Final = 1.5
"""The search for candidates is that much coarser than spglib's, so that it misses none."""

_MAX_PROBES: Final = 32
"""Sites that are moved by a candidate before spglib decides."""

_PAIRS: Final = 200_000
"""Pairs of sites that are compared at once, of about 150 bytes each."""


def primitive_cell(sites: Sites, symprec: float = SYMPREC) -> Sites:
    """Reduce a cell to the primitive one where it repeats itself; else return it as it is.

    Args:
        sites: atomic numbers, positions and cell.
        symprec: how exactly sites must be repeated, in angstrom.

    Returns:
        The same crystal, not rotated, in a cell without inner translations (found by spglib).
    """
    import spglib

    numbers, pos, cell = sites
    # An inner translation maps sites onto others of the same element, so it divides the count of each element.
    if np.gcd.reduce(np.unique(numbers, return_counts=True)[1]) < 2:
        return sites
    if not (np.isfinite(pos).all() and np.isfinite(cell).all()) or abs(np.linalg.det(cell)) < _MIN_VOLUME:
        return sites
    try:
        found = spglib.standardize_cell(
            (cell.tolist(), (pos @ np.linalg.inv(cell)).tolist(), numbers.tolist()),
            to_primitive=True,
            no_idealize=True,
            symprec=symprec,
        )
    except spglib.SpglibError:
        # Newer versions raise where older ones return None, for example for coinciding sites.
        found = None
    if found is None or len(found[2]) >= len(numbers):
        return sites
    smaller = np.asarray(found[0], dtype=np.float64)
    return np.asarray(found[2], dtype=np.int64), np.asarray(found[1], dtype=np.float64) @ smaller, smaller


def may_be_reduced(
    z: np.ndarray, pos: np.ndarray, cell: np.ndarray, counts: np.ndarray, symprec: float = SYMPREC
) -> np.ndarray:
    """Which of many cells may repeat themselves, found without spglib, for all of them at once.

    A translation that repeats a crystal moves the first site of its rarest element onto another site of it, and comes
    back after a number of steps that divides the count of every element. What passes is tried on the other sites.

    Args:
        z: [N] int64, atomic numbers, crystal by crystal.
        pos: [N, 3] float64, Cartesian positions in angstrom.
        cell: [n, 3, 3] float64, lattice vectors as rows, in angstrom.
        counts: [n] int64, sites of each crystal.
        symprec: how exactly sites must be repeated, in angstrom.

    Returns:
        [n] bool; False where :func:`primitive_cell` would return the cell as it is (and for cells that are flat, not
        finite, or larger than MAX_REDUCIBLE).
    """
    n = len(counts)
    start = np.cumsum(counts) - counts
    row = np.repeat(np.arange(n), counts)
    possible = usable_cells(pos, cell, counts) & (counts <= MAX_REDUCIBLE)
    if not possible.any():
        return possible
    inverse = np.zeros_like(cell)
    inverse[possible] = np.linalg.inv(cell[possible])

    # One entry for each element of each crystal; the rarest first.
    stride = int(z.max()) + 1
    element_of_site = row * stride + z
    entries, amounts = np.unique(element_of_site, return_counts=True)
    order = np.lexsort((amounts, entries // stride))
    entries, amounts = entries[order], amounts[order]
    crystals, first = np.unique(entries // stride, return_index=True)
    divisor = np.ones(n, dtype=np.int64)
    divisor[crystals] = np.gcd.reduceat(amounts, first)
    rarest = np.full(n, -1)
    rarest[crystals] = entries[first]
    possible &= divisor > 1

    fractional = np.einsum("ni,nij->nj", pos, inverse[row])
    candidate = np.flatnonzero(possible[row] & (element_of_site == rarest[row]))
    owner, position = np.unique(row[candidate], return_index=True)
    origin = np.zeros(n, dtype=np.int64)
    origin[owner] = candidate[position]
    candidate = candidate[candidate != origin[row[candidate]]]
    shift = fractional[candidate] - fractional[origin[row[candidate]]]
    crystal = row[candidate]
    steps = divisor[crystal][:, None] * shift
    miss = np.einsum("ni,nij->nj", steps - np.round(steps), cell[crystal])
    alive = np.linalg.norm(miss, axis=1) <= _SLACK * divisor[crystal] * symprec
    shift, crystal = shift[alive], crystal[alive]

    # One translation is enough: few are tried first, then twice as many at a time, for the crystals still open.
    _, begin, amount = np.unique(crystal, return_index=True, return_counts=True)
    attempt = np.log2(np.arange(len(crystal)) - np.repeat(begin, amount) + 1).astype(np.int64)
    result = np.zeros(n, dtype=bool)
    for number in range(int(attempt.max(initial=-1)) + 1):
        chosen = np.flatnonzero((attempt == number) & ~result[crystal])
        for probe in range(_MAX_PROBES):
            due = probe < counts[crystal[chosen]]
            of = crystal[chosen[due]]
            if not len(of):
                break
            # From the last site on: files list the rarest element together, and other elements tell more.
            moved = start[of] + counts[of] - 1 - probe
            met = np.ones(len(chosen), dtype=bool)
            met[due] = _meets_equal(z, fractional, cell[of], moved, shift[chosen[due]], start[of], counts[of], symprec)
            chosen = chosen[met]
        result[crystal[chosen]] = True
    return result


def _meets_equal(
    z: np.ndarray,
    fractional: np.ndarray,
    cell: np.ndarray,
    moved: np.ndarray,
    shift: np.ndarray,
    start: np.ndarray,
    counts: np.ndarray,
    symprec: float,
) -> np.ndarray:
    """Whether sites that are moved come to lie on a site of their element.

    Args:
        z: [N] int64, atomic numbers.
        fractional: [N, 3] float64, fractional coordinates.
        cell: [c, 3, 3] float64, lattice vectors of the crystal of each moved site, in angstrom.
        moved: [c] int64, sites.
        shift: [c, 3] float64, by which each is moved, in fractional coordinates.
        start: [c] int64, first site of its crystal.
        counts: [c] int64, sites of its crystal.
        symprec: how exactly sites must be repeated, in angstrom.

    Returns:
        [c] bool.
    """
    place, species = fractional[moved] + shift, z[moved]
    meets = np.zeros(len(moved), dtype=bool)
    block = np.cumsum(counts) // _PAIRS
    for part in np.split(np.arange(len(moved)), np.flatnonzero(np.diff(block)) + 1):
        each = counts[part]
        owner = np.repeat(part, each)
        other = ragged_index(start[part], each)
        difference = place[owner] - fractional[other]
        difference -= np.round(difference)
        distance = np.linalg.norm(np.einsum("ni,nij->nj", difference, cell[owner]), axis=1)
        hit = (distance <= _SLACK * symprec) & (z[other] == species[owner])
        meets[part] = np.logical_or.reduceat(hit, np.cumsum(each) - each)
    return meets


def usable_cells(pos: np.ndarray, cell: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which of many crystals have distances at all.

    Args:
        pos: [N, 3] float64, Cartesian positions in angstrom, crystal by crystal.
        cell: [n, 3, 3] float64, lattice vectors as rows, in angstrom.
        counts: [n] int64, sites of each crystal.

    Returns:
        [n] bool; False for crystals without sites, with a position or cell that is not finite, or a flat cell.
    """
    row = np.repeat(np.arange(len(counts)), counts)
    bad_sites = np.bincount(row[~np.isfinite(pos).all(axis=1)], minlength=len(counts))
    finite = np.isfinite(cell).all(axis=(1, 2))
    with np.errstate(all="ignore"):
        volume = np.abs(np.linalg.det(np.where(finite[:, None, None], cell, 0.0)))
    return (counts > 0) & (bad_sites == 0) & finite & (volume >= _MIN_VOLUME) & (volume < _MAX_VOLUME)
