"""False samples of formulas, which have elements and amounts but no geometry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyg_dim.false_samples.corruption import Kind
from pyg_dim.false_samples.equality import elements_occur
from pyg_dim.rows import group_share


def formula_kind(name: str, batch: Any, false: Any, foreign: Tensor | None = None, *, sites: bool = True) -> Kind:
    """False formulas scored against the true ones whose place they take.

    An element is masked where it occurs in the true formula with the same share; at crystal levels, a formula that is
    the true one: all of its elements occur.

    Args:
        name: name of the kind.
        batch: formulas with their graph.
        false: the corrupted batch, with the same numbers of elements.
        foreign: [N] bool, False where nothing was changed; all True where None.
        sites: whether the kind has a meaning at site levels.

    Returns:
        The kind.
    """
    crystal, formulas = batch.batch, batch.ptr.numel() - 1
    shares = (group_share(b.amount, crystal, formulas) for b in (false, batch))
    new = ~elements_occur(crystal, false.z, next(shares), batch.z, next(shares))
    foreign = torch.ones_like(new) if foreign is None else foreign
    changed = torch.zeros(formulas, dtype=torch.long, device=crystal.device).index_add(0, crystal, new.long()) > 0
    return Kind(
        name,
        site_target=torch.arange(crystal.numel(), device=crystal.device) if sites else None,
        crystal_target=torch.arange(formulas, device=crystal.device),
        edge_species=None,
        keep_edges=(foreign & new)[batch.edge_index[0]] if sites else None,
        keep_sites=foreign & changed[crystal],
    )
