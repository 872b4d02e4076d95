"""Roost's graph: the elements of a formula, each joined to all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.elements import MAX_Z
from pyg_dim.data.graphs import site_ptr
from pyg_dim.data.keys import (
    AMOUNT,
    EQUALS_KEYS,
    GEOMETRY_KEYS,
    LINE_KEYS,
    OXIDATION,
    X,
    forget,
)


class CompositionGraph:
    """The elements of every formula as nodes, with edges between all ordered pairs of them, i = j too.

    Crystals become formulas: their sites are counted by element, and their geometry is taken out of the batch.

    Source: Goodall and Lee, Nat. Commun. 2020, 11, 6280.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Make the nodes and edges of a batch, or of one formula or crystal.

        Args:
            batch: formulas with z and amount, or crystals with z; with ptr where there are several. Changed in place.

        Returns:
            The batch with z [N], amount [N] and edge_index [2, E], sorted by target, then by source; max_sites stays,
            as an upper bound.
        """
        ptr = site_ptr(batch)
        if AMOUNT not in batch:
            ptr = _count_elements(batch, ptr)
        count = ptr.diff()
        of_node = torch.repeat_interleave(count, output_size=batch.z.numel())
        degree = count.index_select(0, of_node)
        # Only the device knows how many edges there are.
        target = torch.repeat_interleave(degree)
        place = torch.arange(target.numel(), device=target.device) - (degree.cumsum(0) - degree).index_select(0, target)
        batch.edge_index = torch.stack([ptr[of_node].index_select(0, target) + place, target])
        return batch


def _count_elements(batch: CrystalBatch, ptr: Tensor) -> Tensor:
    """Put the elements of each crystal, with the number of their sites, in the place of its sites; the new ptr."""
    crystal = torch.repeat_interleave(ptr.diff(), output_size=batch.z.numel())
    entries, sites = torch.unique(crystal * (MAX_Z + 1) + batch.z, return_counts=True)
    crystal = entries // (MAX_Z + 1)
    count = torch.zeros_like(ptr[1:]).index_add(0, crystal, torch.ones_like(crystal))
    dtype = batch.pos.dtype
    forget(batch, (X, OXIDATION, *GEOMETRY_KEYS, *LINE_KEYS, *EQUALS_KEYS))
    batch.z, batch.amount = entries % (MAX_Z + 1), sites.to(dtype)
    ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    if "ptr" in batch:
        batch.batch, batch.ptr = crystal, ptr
    else:
        # PyG counts nodes by keys that formulas do not have.
        batch.num_nodes = batch.z.numel()
    return ptr
