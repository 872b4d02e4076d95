"""Hypothetical crystals from known structure types: a data set without a file and without a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch

from pyg_dim.data.dataset import CrystalDataset, Oxidation
from pyg_dim.data.elements import MAX_Z, PROPERTIES, element_table, symbols
from pyg_dim.data.overlap import MIN_DISTANCE
from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport
from pyg_dim.data.supercell import MAX_SITES

_UNUSED: Final = frozenset({2, 10, 18, 36, 54, 43, 61, *range(84, 90), 91, *range(93, 104)})
"""Elements that are not substituted in: noble gases and elements without long-lived isotopes."""

_SIMILARITY: Final = 4.0
"""A substitute is drawn with probability proportional to exp(-|difference of Mendeleev numbers| / this)."""

_CONTACT: Final = 0.6
"""Sites nearer than this share of the sum of their atomic radii are taken as overlapping."""

_VOLUME: Final = (5.0, 130.0)
"""angstrom^3 a site: the range that relaxed inorganic crystals of the Materials Project span."""

_NEIGHBOURS: Final = 8.0
"""angstrom; within this radius every site of every prototype has a neighbour."""

_TRIES: Final = 20
"""Decorations tried for each crystal wanted, before the number is accepted as unreachable."""


@dataclass(frozen=True)
class _Prototype:
    """A structure type: species are numbered 0 to k - 1."""

    label: str
    species: np.ndarray
    """[p] species of each site."""
    elements: np.ndarray
    """[k] atomic numbers of the original decoration."""
    pos: np.ndarray
    cell: np.ndarray
    contact: np.ndarray
    """[k, k] shortest distance between two species, in angstrom."""
    nearest: np.ndarray
    """[p, 2] species of each site and of its nearest neighbour."""


def _small_prototypes(max_sites: int, report: ImportReport) -> list[_Prototype]:
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    prototypes = []
    too_large = 0
    for number, entry in enumerate(AFLOW_PROTOTYPE_LIBRARY):
        structure = entry["snl"].structure
        # Several entries share an AFLOW label: they differ in their free parameters.
        label = f"{entry['tags']['aflow']}#{number}"
        if len(structure) > max_sites:
            too_large += 1
            continue
        elements, species = np.unique(np.array(structure.atomic_numbers), return_inverse=True)
        centre, neighbour, _, distance = structure.get_neighbor_list(_NEIGHBOURS)
        contact = np.full((len(elements), len(elements)), np.inf)
        np.minimum.at(contact, (species[centre], species[neighbour]), distance)
        order = np.lexsort((neighbour, distance, centre))
        nearest = neighbour[order][np.searchsorted(centre[order], np.arange(len(structure)))]
        prototypes.append(
            _Prototype(
                label=label,
                species=species,
                elements=elements,
                pos=np.array(structure.cart_coords),
                cell=np.array(structure.lattice.matrix),
                contact=contact,
                nearest=np.stack([species, species[nearest]], axis=1),
            )
        )
    if not prototypes:
        raise ValueError(f"every prototype has more than max_sites={max_sites} sites")
    report.notes.append(f"{len(prototypes)} prototypes used, {too_large} with more than {max_sites} sites not")
    return prototypes


def _substitution_weights() -> np.ndarray:
    """[MAX_Z + 1, MAX_Z + 1] weight of replacing the element of the row by that of the column."""
    from pymatgen.core import Element

    order = np.array([np.inf] + [Element.from_Z(z).mendeleev_no for z in range(1, MAX_Z + 1)])
    weights = np.zeros((MAX_Z + 1, MAX_Z + 1))
    weights[1:, 1:] = np.exp(-np.abs(order[1:, None] - order[1:]) / _SIMILARITY)
    weights[:, list(_UNUSED)] = 0.0
    return weights


def _decorate(elements: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a different substitute for each element."""
    drawn: list[int] = []
    for element in elements:
        weight = weights[element].copy()
        weight[drawn] = 0.0
        drawn.append(int(rng.choice(len(weight), p=weight / weight.sum())))
    return np.array(drawn)


def decorated_prototypes(
    n: int = 3000,
    seed: int = 0,
    max_sites: int = MAX_SITES,
    oxidation: Oxidation = "zero",
    dtype: torch.dtype = torch.float32,
) -> CrystalDataset:
    """Hypothetical crystals: AFLOW prototypes with other, chemically similar elements.

    A prototype is drawn in proportion to its number of elements; each of its elements is replaced by one that is near
    in Pettifor's order of the elements (Mendeleev number), distinct ones by distinct ones. The cell is scaled so that
    the mean, over the sites, of the distance to the nearest neighbour relative to the sum of the atomic radii stays as
    it was. Decorations with overlapping sites or an unheard-of volume, and repeated ones, are drawn again. There are
    no labels.

    Sources: the prototypes are those pymatgen ships (Mehl et al., Comput. Mater. Sci. 136, S1, 2017); Mendeleev
    numbers: Pettifor, Solid State Commun. 51, 31 (1984), in the form pymatgen gives.

    Args:
        n: crystals wanted.
        seed: seed of the draw; the same seed and version of pymatgen give the same crystals.
        max_sites: prototypes with more sites are left out.
        oxidation: ``"zero"`` for all, or ``"guess"`` from each composition.
        dtype: floating-point type of positions, cells and site features.

    Returns:
        A data set of n crystals, or of as many different ones as were found; the report says so.

    Raises:
        ValueError: ``n`` is not positive, or no prototype is small enough.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    report = ImportReport("prototypes")
    prototypes = _small_prototypes(max_sites, report)
    radius = element_table()[:, PROPERTIES.index("atomic_radius")].numpy()
    weights = _substitution_weights()
    rng = np.random.default_rng(seed)

    # In proportion to the number of elements: a crystal of one element teaches nothing about which species belongs
    # where.
    share = np.array([len(prototype.elements) for prototype in prototypes], dtype=float)
    share /= share.sum()
    found: dict[str, tuple[_Prototype, np.ndarray, float]] = {}
    implausible = repeated = 0
    for _ in range(_TRIES * n):
        if len(found) == n:
            break
        prototype = prototypes[rng.choice(len(prototypes), p=share)]
        elements = _decorate(prototype.elements, weights, rng)
        old, new = radius[prototype.elements], radius[elements]
        scale = float((new[prototype.nearest].sum(1) / old[prototype.nearest].sum(1)).mean())
        smallest = np.maximum(_CONTACT * (new[:, None] + new), MIN_DISTANCE)
        volume = scale**3 * abs(np.linalg.det(prototype.cell)) / len(prototype.species)
        if (scale * prototype.contact < smallest).any() or not _VOLUME[0] <= volume <= _VOLUME[1]:
            implausible += 1
            continue
        # The elements in the order of those they replace: AB and BA are different crystals of one formula.
        name = f"{prototype.label}:{'-'.join(symbols()[z] for z in elements)}"
        if name in found:
            repeated += 1
            continue
        found[name] = (prototype, elements, scale)
    report.num_read = len(found)
    report.notes.append(f"decorations drawn again: {implausible} too dense or too loose, {repeated} repeated")
    if len(found) < n:
        report.notes.append(f"only {len(found)} different decorations found, {n} were wanted")
    counts = np.array([len(prototype.species) for prototype, _, _ in found.values()])
    raw = RawCrystals(
        ids=pa.array(list(found)),
        species_counts=counts,
        position_counts=counts,
        z=np.concatenate([elements[prototype.species] for prototype, elements, _ in found.values()]),
        pos=np.concatenate([prototype.pos * scale for prototype, _, scale in found.values()]),
        cell=np.stack([prototype.cell * scale for prototype, _, scale in found.values()]),
        labels={},
    )
    return CrystalDataset.from_raw(raw, report, max_sites, oxidation, dtype)
