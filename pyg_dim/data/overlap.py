"""Sites that lie on top of one another."""

from __future__ import annotations

from typing import Final

import numpy as np

MIN_DISTANCE: Final = 0.5
"""angstrom; sites nearer than this overlap. The shortest bond, in the hydrogen molecule, has 0.74 angstrom."""

_MIN_VOLUME: Final = 1e-6
"""angstrom^3; a smaller cell counts as flat."""

_IMAGES: Final = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(27, 3)


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
