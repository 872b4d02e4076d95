"""Sites that lie on top of one another."""

from __future__ import annotations

from typing import Final

import numpy as np

from pyg_dim.data.primitive import usable_cells
from pyg_dim.data.raw import ragged_index

MIN_DISTANCE: Final = 0.5
"""angstrom; sites nearer than this overlap. The shortest bond, in the hydrogen molecule, has 0.74 angstrom."""

_MIN_VOLUME: Final = 1e-6
"""angstrom^3; a smaller cell counts as flat."""

_IMAGES: Final = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(27, 3)


_PAIRS: Final = 1_000_000
"""Pairs of sites that are compared at once."""


def overlaps(pos: np.ndarray, cell: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Shortest distances of many crystals at once, each as :func:`pyg_dim.data.overlap.overlap` gives it.

    Where the planes of the lattice are at least twice MIN_DISTANCE apart, as in nearly all crystals, a difference
    vector shorter than that has fractional coordinates below one half. So the nearest image by rounding is the only one
    to look at, whatever the angles of the cell.

    Args:
        pos: [N, 3] float64, Cartesian positions in angstrom, crystal by crystal.
        cell: [n, 3, 3] float64, lattice vectors as rows, in angstrom.
        counts: [n] int64, sites of each crystal.

    Returns:
        [n] float64, shortest distance in angstrom where it is below MIN_DISTANCE; else infinite.
    """
    n = len(counts)
    start = np.cumsum(counts) - counts
    nearest = np.full(n, np.inf)
    usable = usable_cells(pos, cell, counts)
    inverse = np.zeros_like(cell)
    inverse[usable] = np.linalg.inv(cell[usable])
    with np.errstate(divide="ignore"):
        spacing = 1 / np.linalg.norm(inverse, axis=1)
    plain = usable & (spacing.min(axis=1, initial=np.inf) >= 2 * MIN_DISTANCE) & (counts * counts <= _PAIRS)
    for k in np.flatnonzero(usable & ~plain).tolist():
        found = overlap(pos[start[k] : start[k] + counts[k]], cell[k])
        nearest[k] = np.inf if found is None else found

    chosen = np.flatnonzero(plain)
    block = np.cumsum(counts[chosen] ** 2) // _PAIRS
    for rows in np.split(chosen, np.flatnonzero(np.diff(block)) + 1):
        each = counts[rows]
        site = ragged_index(start[rows], each)
        owner = np.repeat(rows, each)
        fractional = np.einsum("ni,nij->nj", pos[site], inverse[owner])
        # Every site with those that follow it in its crystal.
        following = np.repeat(np.cumsum(each), each) - np.arange(len(site)) - 1
        left = np.repeat(np.arange(len(site)), following)
        right = ragged_index(np.arange(len(site)) + 1, following)
        for axis in range(3):
            along = fractional[left, axis] - fractional[right, axis]
            along -= np.round(along)
            near = np.abs(along) * spacing[owner[left], axis] < MIN_DISTANCE
            left, right = left[near], right[near]
        difference = fractional[left] - fractional[right]
        difference -= np.round(difference)
        distance = np.linalg.norm(np.einsum("ni,nij->nj", difference, cell[owner[left]]), axis=1)
        np.minimum.at(nearest, owner[left], distance)
    nearest[nearest >= MIN_DISTANCE] = np.inf
    return nearest


def overlap(pos: np.ndarray, cell: np.ndarray) -> float | None:
    """Shortest distance between two sites, or a site and its own periodic image, if it is below MIN_DISTANCE.

    Args:
        pos: [p, 3] float64, Cartesian positions in angstrom; they may lie outside of the cell.
        cell: [3, 3] float64, lattice vectors as rows, in angstrom.

    Returns:
        The distance in angstrom; None where no sites overlap, and where there are no distances: no sites, a position
        or a cell that is not finite, a cell that is flat or too distorted for spglib to reduce it.
    """
    import spglib

    finite = np.isfinite(pos).all() and np.isfinite(cell).all()
    if not len(pos) or not finite or abs(np.linalg.det(cell)) < _MIN_VOLUME:
        return None
    try:
        # In a reduced cell, the nearest image of a wrapped vector is among the 27 around it.
        reduced = spglib.niggli_reduce(cell)
    except spglib.SpglibError:
        # Newer versions raise where older ones return None.
        reduced = None
    if reduced is None:
        return None
    nearest = float(np.linalg.norm(reduced, axis=1).min())
    inverse = np.linalg.inv(reduced)
    # Sites that are near are near across the planes of each lattice direction: sorted along the widest one, every site
    # needs to be compared with the few that follow it within the distance.
    spacing = 1 / np.linalg.norm(inverse, axis=0)
    widest = int(spacing.argmax())
    fractional = pos @ inverse % 1
    fractional = fractional[fractional[:, widest].argsort()]
    shifts = _IMAGES @ reduced
    for step in range(1, len(pos)):
        difference = np.roll(fractional, -step, axis=0) - fractional
        difference = difference[difference[:, widest] % 1 * spacing[widest] < MIN_DISTANCE]
        if not len(difference):
            break
        wrapped = (difference - np.round(difference)) @ reduced
        nearest = min(nearest, float(np.linalg.norm(wrapped[:, None] + shifts, axis=2).min()))
    return nearest if nearest < MIN_DISTANCE else None
