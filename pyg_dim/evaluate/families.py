"""Chemical families of crystals, the overlay of embedding maps."""

from __future__ import annotations

import torch

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.elements import MAX_Z
from pyg_dim.evaluate.intrinsic import crystal_of_site

FAMILIES = (
    "oxide",
    "halide",
    "chalcogenide",
    "pnictide",
    "hydride",
    "carbide, silicide or boride",
    "intermetallic",
    "element",
    "other",
)

_OXYGEN = (8,)
_HALOGENS = (9, 17, 35, 53, 85)
_CHALCOGENS = (16, 34, 52, 84)
_PNICTOGENS = (7, 15, 33, 51)
_HYDROGEN = (1,)
_LIGHT = (5, 6, 14)
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)
_METALLOIDS = (5, 14, 32, 33, 51, 52, 84)
_NOT_METALS = (1, 6, 7, 8, 15, 16, 34, *_HALOGENS, *_NOBLE_GASES, *_METALLOIDS)


def chemical_families(dataset: CrystalDataset) -> list[str]:
    """Sort crystals into families by the anion their composition suggests.

    The anion of a crystal is the most frequent of oxygen, the halogens, the chalcogens (S, Se, Te) and the pnictogens
    (N, P, As, Sb); the earlier in this order wins a tie, so that LaOCl is an oxide. Only where none of them occurs
    does hydrogen make a hydride, then carbon, silicon or boron a carbide, silicide or boride. What is left is
    intermetallic. A crystal of one element is an ``element``; a compound of a noble gas is ``other``.

    Args:
        dataset: The crystals.

    Returns:
        One of :data:`FAMILIES` for each crystal.
    """
    metal, noble = 6, 7
    group = torch.full((MAX_Z + 1,), metal)
    for number, members in enumerate((_OXYGEN, _HALOGENS, _CHALCOGENS, _PNICTOGENS, _HYDROGEN, _LIGHT)):
        group[list(members)] = number
    group[list(_NOBLE_GASES)] = noble
    amount = torch.ones_like(dataset.z) if dataset.amount is None else dataset.amount
    counts = torch.zeros(len(dataset), 8, dtype=torch.float64)
    counts.index_put_((crystal_of_site(dataset), group[dataset.z]), amount.double(), accumulate=True)

    anions = counts[:, :4]
    # torch.argmax does not say which of several maxima it returns: of those there are, the first.
    most = (anions == anions.amax(dim=1, keepdim=True)).int().mul(torch.arange(4, 0, -1)).argmax(dim=1)
    family = torch.full((len(dataset),), FAMILIES.index("intermetallic"))
    family[counts[:, 5] > 0] = FAMILIES.index("carbide, silicide or boride")
    family[counts[:, 4] > 0] = FAMILIES.index("hydride")
    family = torch.where(anions.sum(dim=1) > 0, most, family)
    family[counts[:, noble] > 0] = FAMILIES.index("other")
    family[element_count(dataset) == 1] = FAMILIES.index("element")
    return [FAMILIES[number] for number in family.tolist()]


def with_metal_and_halogen(dataset: CrystalDataset) -> torch.Tensor:
    """Find the crystals that have both a metal and a halogen, the overlay of Moran et al. 2025, fig. 6.

    Metalloids (B, Si, Ge, As, Sb, Te, Po) are no metals.

    Args:
        dataset: The crystals.

    Returns:
        [crystals] bool.
    """
    present = _present(dataset)
    metal = torch.ones(MAX_Z + 1, dtype=torch.bool)
    metal[[0, *_NOT_METALS]] = False
    return present[:, metal].any(dim=1) & present[:, list(_HALOGENS)].any(dim=1)


def element_count(dataset: CrystalDataset) -> torch.Tensor:
    """Count the distinct elements of each crystal.

    Args:
        dataset: The crystals.

    Returns:
        [crystals] int64.
    """
    return _present(dataset).sum(dim=1)


def _present(dataset: CrystalDataset) -> torch.Tensor:
    """Which elements [crystals, MAX_Z + 1] each crystal has."""
    present = torch.zeros(len(dataset), MAX_Z + 1, dtype=torch.bool)
    present[crystal_of_site(dataset), dataset.z] = True
    return present
