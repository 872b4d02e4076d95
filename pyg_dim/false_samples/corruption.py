"""What every engineered false sample has in common: a corrupted batch and where its constituents are scored."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pyg_dim.constituents import Constituents
from pyg_dim.data.keys import EQUALS_KEYS, SPECIES_KEYS, forget
from pyg_dim.false_samples.equality import constituents_occur
from pyg_dim.rows import same_memory
from pyg_dim.tape import FalseSample, Record

_GEOMETRY: Final = 1e-4
"""How far expanded distances and angles of equal neighbours may differ: those of relaxed structures are noisy."""


@dataclass(frozen=True)
class Kind:
    """One kind of false samples of a corrupted batch: where its constituents are scored, and which are masked.

    Attributes:
        name: name of the kind.
        site_target: [N] site whose representation the constituents of each site are scored against; None where the kind
            has no meaning at site levels.
        crystal_target: [B] crystal whose representation the constituents of each crystal are scored against.
        edge_species: [N] true and [N] false atomic numbers where the kind has a meaning at edge levels: the
            constituents of an edge are scored against that edge. None where it has none.
        keep_edges: [E] bool, False where an edge equals a true one of its target.
        keep_sites: [N] bool, False where the environment of a site equals a true one of its target.
    """

    name: str
    site_target: Tensor | None
    crystal_target: Tensor
    edge_species: tuple[Tensor, Tensor] | None
    keep_edges: Tensor | None
    keep_sites: Tensor

    def sample(self, true: Record, false: Record) -> FalseSample | None:
        """False samples of this kind at one level.

        Args:
            true: record of the level in the true pass.
            false: record of the same call in the corrupted pass.

        Returns:
            The samples, or None where the kind has no meaning at such a level.

        Raises:
            ValueError: the passes do not line up, or it is not known what the groups are; the message names the level.
        """
        if false.z.shape != true.z.shape or len(false.constituents) != len(true.constituents):
            raise ValueError(
                f"level {true.name!r}: the corrupted pass has {len(false.constituents)} constituents in groups of "
                f"shape {tuple(false.z.shape)}, the true pass {len(true.constituents)} in {tuple(true.z.shape)}; "
                "a model must keep the geometry of the graph for engineered false samples"
            )
        keep: Tensor | None
        group_target = {"crystal": self.crystal_target, "site": self.site_target}.get(true.scope or "")
        if true.scope == "crystal":
            target, keep = self.crystal_target[false.index], self.keep_sites
        elif true.scope == "site" and self.site_target is not None:
            target, keep = self.site_target[false.index], self.keep_edges
        elif true.scope == "edge" and self.edge_species is not None:
            target, keep = false.index, ~_species_occur(true, false, *self.edge_species)
        elif true.scope is None:
            raise ValueError(
                f"level {true.name!r}: its groups are neither the sites nor the crystals of the batch; "
                "build it with scope='site', 'crystal' or 'edge'"
            )
        else:
            return None
        weight = false.weight
        if keep is not None:
            if keep.numel() != target.numel():
                # Not the edges or sites of the batch (self-loops, nodes that are left after pooling).
                keep = ~constituents_occur(false.constituents, target, true.constituents, true.index)
            weight = keep.to(false.z.dtype) if weight is None else weight * keep
        same_groups = same_memory(false.index, true.index)
        return FalseSample(self.name, false.constituents, target, weight, group_target if same_groups else None)


def _species_occur(true: Record, false: Record, true_species: Tensor, false_species: Tensor) -> Tensor:
    """Whether the constituents of edges are true ones of their edge, by species instead of learned site features.

    Site features are the first part that gathers from as many rows as there are sites.
    """
    for position, (features, site) in enumerate(true.constituents.parts):
        if site is not None and features.size(0) == true_species.numel():
            named = [
                Constituents(*((species[:, None].double(), site) if k == position else part for k, part in parts))
                for species, parts in (
                    (true_species, enumerate(true.constituents.parts)),
                    (false_species, enumerate(false.constituents.parts)),
                )
            ]
            in_place = (true_species == false_species)[site]
            return in_place | constituents_occur(named[1], false.index, named[0], true.index, _GEOMETRY)
    return constituents_occur(false.constituents, false.index, true.constituents, true.index)


@dataclass(frozen=True)
class Corruption:
    """A corrupted batch, which costs one pass, and the kinds of false samples that the pass gives."""

    batch: Any
    kinds: tuple[Kind, ...]


def relabel(batch: Any, donor: Tensor, keys: Sequence[str] = SPECIES_KEYS) -> Any:
    """The same geometry with other species: everything that hangs on the species of a site moves together.

    Args:
        batch: a crystal batch.
        donor: [N] site whose species each site takes.
        keys: what moves.

    Returns:
        A shallow copy of the batch with re-labelled species; all other tensors are shared, but for the classes of
        equal sites, edges and angles: with other species these are not equal.
    """
    false = copy(batch)
    for key in keys:
        if (values := batch.get(key)) is not None:
            false[key] = values[donor]
    forget(false, EQUALS_KEYS)
    return false


def random_order(group: Tensor, generator: torch.Generator | None) -> Tensor:
    """Order that sorts by group and is uniformly random inside each.

    Args:
        group: [n] integers.
        generator: random numbers, on the device of ``group``.

    Returns:
        [n] positions, as :func:`torch.argsort` gives them.
    """
    noise = torch.rand(group.shape, dtype=torch.float64, device=group.device, generator=generator)
    return torch.argsort(group + noise)
