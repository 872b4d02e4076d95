"""Keys of a crystal batch, each with its shape and unit.

N sites, B crystals, E edges of the graph, T targets, F columns of the fingerprint or dimensions of the embedding, L
edges of the line graph, P pairs of classes of one batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Z: Final = "z"
"""[N] int64: atomic number."""
X: Final = "x"
"""[N, 9] float: scaled site features (see :mod:`pyg_dim.data.elements`)."""
OXIDATION: Final = "oxidation"
"""[N] float: oxidation state, in elementary charges; zero where unknown."""
AMOUNT: Final = "amount"
"""[N] float: how much of its element a site of a formula stands for; crystals have none, nor do formulas have pos."""
POS: Final = "pos"
"""[N, 3] float: Cartesian positions, in angstrom."""
CELL: Final = "cell"
"""[B, 3, 3] float: lattice vectors as rows, in angstrom."""
BATCH: Final = "batch"
"""[N] int64: crystal of each site."""
PTR: Final = "ptr"
"""[B + 1] int64: first site of each crystal, then N."""
MAX_SITES: Final = "max_sites"
"""int: sites of the largest crystal of the batch, known on the host so that no step has to ask the device."""
ROW: Final = "row"
"""[B] int64: row of each crystal in its data set."""
EDGE_INDEX: Final = "edge_index"
"""[2, E] int64: source site j, target site i; sorted by target. A periodic graph is a multigraph: never coalesce."""
EDGE_SHIFT: Final = "edge_shift"
"""[E, 3] int64: lattice image of the source: the neighbour lies at pos[j] + edge_shift @ cell."""
EDGE_DIST: Final = "edge_dist"
"""[E] float: length of the edge, in angstrom."""
LINE_INDEX: Final = "line_index"
"""[2, L] int64: edge k -> j, edge j -> i, the nodes of the line graph; sorted by the second, then by the first."""
LINE_COS: Final = "line_cos"
"""[L] float: cosine of the angle at j between its neighbours k and i; 1 where the second edge leads back."""
STATE: Final = "state"
"""[B] int64: label of the state of each crystal (level of theory, for instance), for models that take one."""
SITE_CLASS: Final = "site_class"
EDGE_CLASS: Final = "edge_class"
LINE_CLASS: Final = "line_class"
"""[N], [E], [L] int64: class of equals, from 0 (see :class:`~pyg_dim.data.SymmetryClasses`)."""
SITE_COUNT: Final = "site_count"
EDGE_COUNT: Final = "edge_count"
LINE_COUNT: Final = "line_count"
"""[number of classes] int64: members of each of those classes."""
PAIR_INDEX: Final = "pair_index"
"""[2, P] int64: source and target class of the sites that a class of edges joins; sorted by target, then by source."""
PAIR_DIST: Final = "pair_dist"
"""[P] float: length of those edges, in angstrom."""
PAIR_COUNT: Final = "pair_count"
"""[P] int64: how many of them end at each site of the target class."""
Y: Final = "y"
"""[B, T] float: labels in their own units, NaN where missing."""
FINGERPRINT: Final = "fingerprint"
"""[B, F] float: what is computed from the crystals themselves (see :mod:`pyg_dim.data.fingerprints`)."""
EMBEDDING: Final = "embedding"
"""[B, F] float: what a teacher makes of the crystals, NaN where it has nothing to say (see
:class:`~pyg_dim.objectives.distillation.Distillation`)."""

SPECIES_KEYS: Final = (Z, X, OXIDATION, AMOUNT)
"""What is attached to the species of a site. A false sample re-labels these and leaves the geometry as it is."""

CLASS_COUNTS: Final = {SITE_CLASS: SITE_COUNT, EDGE_CLASS: EDGE_COUNT, LINE_CLASS: LINE_COUNT}
"""Classes and their sizes."""

PAIR_KEYS: Final = (PAIR_INDEX, PAIR_DIST, PAIR_COUNT)
"""Pairs of classes."""

EQUALS_KEYS: Final = (*CLASS_COUNTS, *CLASS_COUNTS.values(), *PAIR_KEYS)
"""They depend on the species, too: a false sample goes without."""

GEOMETRY_KEYS: Final = (POS, CELL, EDGE_SHIFT, EDGE_DIST)
"""What a crystal has and a formula has not."""

LINE_KEYS: Final = (LINE_INDEX, LINE_COS)
"""What a line graph adds."""


def forget(batch: Any, keys: Iterable[str]) -> None:
    """Take away from a batch what no longer holds for it.

    Args:
        batch: crystal batch, with all, some or none of the keys; changed in place.
        keys: what to take away.
    """
    for key in keys:
        if key in batch:
            del batch[key]
