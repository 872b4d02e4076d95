"""Transplant: every graph carries the species of another crystal of the batch; one pass, two kinds."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import Tensor

from pyg_dim.data.keys import AMOUNT
from pyg_dim.false_samples.corruption import Corruption, Kind, random_order, relabel
from pyg_dim.false_samples.equality import edges_occur, environments, sites_occur
from pyg_dim.false_samples.formulas import formula_kind

DonorRule = Literal["matched", "any"]
DONOR_RULES: Final = ("matched", "any")
TRANSPLANT_KINDS: Final = ("composition", "polymorph")


def donor_crystals(
    count: Tensor, max_sites: int, *, donors: DonorRule = "matched", generator: torch.Generator | None = None
) -> Tensor:
    """A random permutation of the crystals of a batch without fixed point.

    Crystals of equal site count form a random cycle, so that a transplant keeps the donor's composition; those alone
    with their count form one more, and one that is left alone after that joins the cycle of the next larger or
    smaller count.

    Args:
        count: [B] sites of each crystal.
        max_sites: the largest count.
        donors: "matched" as above, or "any": one random cycle over all crystals.
        generator: random numbers, on the device of ``count``.

    Returns:
        [B] donor of each crystal; the crystal itself where it is the only one.

    Raises:
        ValueError: unknown rule.
    """
    if donors not in DONOR_RULES:
        raise ValueError(f"unknown donor rule {donors!r}; known: {', '.join(DONOR_RULES)}")
    if donors == "any":
        group = torch.zeros_like(count)
    else:
        same = torch.zeros(max_sites + 1, dtype=count.dtype, device=count.device).index_add(
            0, count, torch.ones_like(count)
        )
        single = same[count] == 1
        by_count = torch.argsort(count)
        # The neighbour in order of size: the next larger one, for the largest the next smaller.
        neighbour = torch.empty_like(count).index_copy(
            0, by_count, torch.cat([count[by_count[1:]], count[by_count[-2:-1]]]) if count.numel() > 1 else count
        )
        group = torch.where(single, torch.where(single.sum() > 1, torch.zeros_like(count), neighbour), count)
    order = random_order(group, generator)
    sorted_group = group[order]
    position = torch.arange(group.numel(), device=group.device)
    starts = torch.ones_like(sorted_group, dtype=torch.bool)
    starts[1:] = sorted_group[1:] != sorted_group[:-1]
    start = torch.cummax(torch.where(starts, position, torch.zeros_like(position)), dim=0).values
    ends = torch.ones_like(starts)
    ends[:-1] = starts[1:]
    successor = torch.where(ends, start, position + 1)
    return torch.empty_like(order).index_copy(0, order, order[successor])


def donor_sites(batch: Any, donor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    r"""The site whose species each site takes: the k-th of n_b sites that of number

    .. math:: \lfloor (k + u)\, n_d / n_b \rfloor \bmod n_d, \qquad u \in [0, n_b) \text{ random for each crystal}

    which hands every donor site on once where the counts agree, and as evenly as can be where they do not.

    Args:
        batch: crystal batch (batch, ptr).
        donor: [B] donor of each crystal.
        generator: random numbers, on the device of the batch.

    Returns:
        [N] donor site of each site.
    """  # noqa: D415 - the formula belongs to the sentence
    crystal, ptr = batch.batch, batch.ptr
    count = ptr.diff()
    k = torch.arange(crystal.numel(), device=ptr.device) - ptr[crystal]
    offset = torch.rand(count.shape, dtype=torch.float64, device=ptr.device, generator=generator) * count
    n, n_donor = count[crystal], count[donor][crystal]
    site = ((k + offset[crystal]) * n_donor / n).floor().long() % n_donor
    return ptr[donor][crystal] + site


def transplant(
    batch: Any,
    *,
    kinds: tuple[str, ...] = TRANSPLANT_KINDS,
    donors: DonorRule = "matched",
    generator: torch.Generator | None = None,
) -> Corruption:
    """Re-label every crystal of the batch with the species of another one.

    Scored against the crystal whose geometry it has, a constituent is a *composition* sample (true geometry, false
    species); against the donor, a *polymorph* (true species, false geometry). At site levels the target of a
    polymorph is the site that gave the centre its species. A pair that occurs in the environment it is scored against
    (the self pair of a polymorph, pairs of equal species of a composition sample) is masked, and so is an environment
    that occurs in the crystal it is scored against.

    A batch of formulas has no geometry: every formula takes elements and amounts of another one, of as many elements
    where there is one. It is a *composition* sample, and has no *polymorph*.

    Args:
        batch: crystal batch with its graph.
        kinds: which of the two to make.
        donors: rule for the donor, see :func:`donor_crystals`.
        generator: random numbers, on the device of the batch.

    Returns:
        The corruption. In a batch of one crystal every sample is masked.

    Raises:
        ValueError: unknown kind or donor rule, or polymorphs of formulas.

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 5 (kinds of false samples) and sec. 2.7 (composition).
    """
    if unknown := set(kinds) - set(TRANSPLANT_KINDS):
        raise ValueError(f"unknown kinds of transplants {sorted(unknown)}; known: {', '.join(TRANSPLANT_KINDS)}")
    formulas = AMOUNT in batch
    if formulas and "polymorph" in kinds:
        raise ValueError("formulas have no geometry, and so no polymorphs: take the kind composition alone")
    crystal_donor = donor_crystals(batch.ptr.diff(), batch.max_sites, donors=donors, generator=generator)
    site_donor = donor_sites(batch, crystal_donor, generator=generator)
    false = relabel(batch, site_donor)
    # In a batch of one crystal it is its own donor, which makes no false sample of these kinds.
    foreign = (crystal_donor != torch.arange(crystal_donor.numel(), device=crystal_donor.device))[batch.batch]
    if formulas:
        return Corruption(false, (formula_kind("composition", batch, false, foreign),) if kinds else ())
    true_environment, environment = environments(batch, batch.z), environments(batch, false.z)

    def kind(name: str, site_target: Tensor, crystal_target: Tensor) -> Kind:
        scored = crystal_target[batch.batch]
        occurs = sites_occur(batch, false.z, environment, scored, batch.z, true_environment)
        return Kind(
            name,
            site_target=site_target,
            crystal_target=crystal_target,
            edge_species=(batch.z, torch.where(foreign, false.z, batch.z)) if name == "composition" else None,
            keep_edges=foreign[batch.edge_index[1]] & ~edges_occur(batch, site_target, false.z),
            keep_sites=foreign & ~occurs,
        )

    sites = torch.arange(batch.z.numel(), device=batch.z.device)
    crystals = torch.arange(crystal_donor.numel(), device=batch.z.device)
    made = {
        "composition": lambda: kind("composition", sites, crystals),
        "polymorph": lambda: kind("polymorph", site_donor, crystal_donor),
    }
    return Corruption(false, tuple(made[name]() for name in kinds))
