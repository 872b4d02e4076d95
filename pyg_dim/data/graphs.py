"""Crystal graphs: which pairs of sites a model sees."""

from __future__ import annotations

import torch

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.minimum_image import minimum_image
from pyg_dim.data.neighbors import Neighbors, nearest_neighbors, target_places
from pyg_dim.data.supercell import MAX_SITES, nearly_cubic


class DenseSupercell:
    r"""Site-Net's graph: every site of the primitive cell to every site of a roughly cubic supercell.

    Site i of a crystal with p sites and m images gets p·m edges: columns ``source-major``, the m images of the first
    site, then those of the second. Distances are minimum-image distances in the supercell, so every column is one
    edge; the site itself (distance exactly 0) and its own images are ordinary columns. Source: Moran et al., Digital
    Discovery 2023, 2, 1297.

    Args:
        max_sites: largest number of sites of a supercell; a crystal that has more is its own supercell.

    Raises:
        ValueError: ``max_sites`` is not positive.
    """

    def __init__(self, max_sites: int = MAX_SITES) -> None:
        if max_sites < 1:
            raise ValueError(f"max_sites must be at least 1, not {max_sites}")
        self.max_sites = max_sites

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_sites={self.max_sites})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add the edges to a batch.

        Lengths are computed in float64 and rounded to the type of ``pos``.

        Args:
            batch: crystals with pos, cell, batch and ptr; changed in place.

        Returns:
            The batch with edge_index [2, E], edge_shift [E, 3] and edge_dist [E], on its device.
        """
        pos, cell, ptr = batch.pos.double(), batch.cell.double(), batch.ptr
        num_sites = ptr.diff()
        supercell = nearly_cubic(cell, num_sites, self.max_sites)
        repeats = torch.diagonal(supercell, dim1=1, dim2=2)
        images = repeats.prod(1)

        # Sites of the supercells: few, next to the pairs, so all that depends on the column alone is worked out here.
        width = num_sites * images
        crystal = torch.repeat_interleave(width)
        first = width.cumsum(0) - width
        column = torch.arange(crystal.numel(), device=pos.device) - first[crystal]
        source = ptr[crystal] + column // images[crystal]
        image = column % images[crystal]
        _, n1, n2 = repeats[crystal].unbind(1)
        offset = torch.stack([image // (n1 * n2), image // n2 % n1, image % n2], dim=1)
        place = pos[source] + (offset.to(pos.dtype).unsqueeze(1) @ cell[crystal]).squeeze(1)

        # Pairs: each site with all columns of its crystal.
        width = width[batch.batch]
        target = torch.repeat_interleave(width)
        start = first[batch.batch] - (width.cumsum(0) - width)
        column = torch.arange(target.numel(), device=pos.device) + start[target]
        period = supercell.to(pos.dtype) @ cell
        crystal = batch.batch[target]
        length, shift = minimum_image(place[column] - pos[target], crystal, period)
        batch.edge_index = torch.stack([source[column], target])
        batch.edge_shift = (
            offset[column] + (shift.unsqueeze(1).double() @ supercell.double()[crystal]).squeeze(1).long()
        )
        batch.edge_dist = length.to(batch.pos.dtype)
        return batch


class NearestNeighbors:
    """CGCNN's graph: edges to every site from its k nearest neighbours within a cutoff, its own images among them.

    Edges are sorted by target, then by distance; equal distances (:data:`~pyg_dim.data.neighbors.TIE`) by source, which
    also decides between equally distant neighbours where only some of them are among the k nearest. A site with fewer
    neighbours gets fewer edges, or padding. Source: Xie and Grossman 2018.

    Args:
        k: number of neighbours.
        cutoff: largest distance, in angstrom.
        pad: fill up to k edges as the authors' program does, from the first site of the crystal, with shift zero and
            length ``cutoff + 1``; such edges take part like real ones.

    Raises:
        ValueError: ``k`` or ``cutoff`` is not positive.
    """

    def __init__(self, k: int = 12, cutoff: float = 8.0, pad: bool = False) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if not 0 < cutoff < float("inf"):
            raise ValueError(f"cutoff must be a positive length in angstrom, not {cutoff}")
        self.k, self.cutoff, self.pad = k, cutoff, pad

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k}, cutoff={self.cutoff}, pad={self.pad})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add the edges to a batch.

        Lengths are computed in float64 and rounded to the type of ``pos``.

        Args:
            batch: crystals with pos, cell and ptr (and batch, for padding); changed in place.

        Returns:
            The batch with edge_index [2, E], edge_shift [E, 3] and edge_dist [E], on its device.
        """
        found = nearest_neighbors(batch.pos, batch.cell, batch.ptr, self.k, self.cutoff)
        if self.pad:
            found = self._padded(found, batch)
        batch.edge_index = torch.stack([found.source, found.target])
        batch.edge_shift = found.shift
        batch.edge_dist = found.distance.to(batch.pos.dtype)
        return batch

    def _padded(self, found: Neighbors, batch: CrystalBatch) -> Neighbors:
        target = torch.arange(batch.pos.size(0), device=batch.pos.device).repeat_interleave(self.k)
        place = target_places(found.target, batch.pos.size(0)) + found.target * self.k
        return Neighbors(
            batch.ptr[batch.batch[target]].index_copy(0, place, found.source),
            target,
            found.shift.new_zeros(target.numel(), 3).index_copy(0, place, found.shift),
            found.distance.new_full(target.shape, self.cutoff + 1).index_copy(0, place, found.distance),
        )
