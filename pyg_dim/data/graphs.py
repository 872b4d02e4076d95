"""Crystal graphs: which pairs of sites a model sees."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.keys import AMOUNT, EQUALS_KEYS, LINE_KEYS, forget
from pyg_dim.data.minimum_image import GAIN, minimum_image
from pyg_dim.data.neighbors import Neighbors, nearest_neighbors, neighbors_within, target_places
from pyg_dim.data.supercell import MAX_SITES, nearly_cubic
from pyg_dim.native import serves, usable
from pyg_dim.native.dense_pairs import dense_pairs


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
        """Add the edges to a batch, or to one crystal.

        Lengths are computed in float64 and rounded to the type of ``pos``.

        Args:
            batch: crystals with pos, cell and ptr; changed in place. Without ptr it is a single one.

        Returns:
            The batch with edge_index [2, E], edge_shift [E, 3] and edge_dist [E], on its device.
        """
        pos, cell, ptr = geometry(batch)
        supercell = nearly_cubic(cell, ptr.diff(), self.max_sites)
        served = usable(pos.new_empty(0)) and serves("dense_pairs", torch.float64)
        if served and not (pos.requires_grad or cell.requires_grad):
            return set_edges(batch, *dense_pairs(pos, cell, ptr, supercell, GAIN))
        return set_edges(batch, *_plain_pairs(pos, cell, ptr, supercell))


class NearestNeighbors:
    """CGCNN's graph: edges to every site from its k nearest neighbours within a cutoff, its own images among them.

    Edges are sorted by target, then by distance. Between neighbours at equal distance (each within 1e-5 angstrom of the
    one before, :data:`~pyg_dim.data.neighbors.TIE`) the atomic number decides, then the index of the site, then the
    lattice image; also where only some of them are among the k nearest. A site with fewer neighbours gets fewer edges,
    or padding. Source: Xie and Grossman 2018.

    Args:
        k: number of neighbours.
        cutoff: largest distance, in angstrom.
        pad: fill up to k edges as the authors' program does, from the first site of the crystal, with shift zero and
            length ``cutoff + 1``; such edges take part like real ones.
        ties: keep all neighbours that are as far as the k-th: more than k edges, but none that depend on the order of
            sites or the choice of cell.
        symmetric: make the graph undirected: an edge from j to i comes with that from i to j, each once. Not together
            with ``pad``.

    Raises:
        ValueError: ``k`` or ``cutoff`` is not positive, or ``pad`` together with ``ties`` or ``symmetric``.
    """

    def __init__(
        self, k: int = 12, cutoff: float = 8.0, pad: bool = False, ties: bool = False, symmetric: bool = False
    ) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if pad and ties:
            raise ValueError("pad gives every site k edges and ties gives some of them more: choose one")
        if pad and symmetric:
            raise ValueError("edges of padding have no way back: choose pad or symmetric")
        self.k, self.cutoff, self.pad, self.ties, self.symmetric = k, _checked(cutoff), pad, ties, symmetric

    def __repr__(self) -> str:
        # Named only where it is set: files of cached graphs know what they were made of by this text.
        symmetric = ", symmetric=True" if self.symmetric else ""
        return f"{type(self).__name__}(k={self.k}, cutoff={self.cutoff}, pad={self.pad}, ties={self.ties}{symmetric})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add the edges to a batch, or to one crystal.

        Lengths are computed in float64 and rounded to the type of ``pos``.

        Args:
            batch: crystals with z, pos, cell and ptr; changed in place. Without ptr it is a single one.

        Returns:
            The batch with edge_index [2, E], edge_shift [E, 3] and edge_dist [E], on its device.
        """
        pos, cell, ptr = geometry(batch)
        found = nearest_neighbors(pos, cell, ptr, self.k, self.cutoff, batch.z, self.ties, self.symmetric)
        found = self._padded(found, ptr, pos.size(0)) if self.pad else found
        return set_edges(batch, torch.stack([found.source, found.target]), found.shift, found.distance)

    def _padded(self, found: Neighbors, ptr: Tensor, num_sites: int) -> Neighbors:
        target = torch.arange(num_sites, device=ptr.device).repeat_interleave(self.k)
        place = target_places(found.target, num_sites) + found.target * self.k
        return Neighbors(
            ptr[:-1]
            .repeat_interleave(ptr.diff() * self.k, output_size=target.numel())
            .index_copy(0, place, found.source),
            target,
            found.shift.new_zeros(target.numel(), 3).index_copy(0, place, found.shift),
            found.distance.new_full(target.shape, self.cutoff + 1).index_copy(0, place, found.distance),
        )


class RadiusGraph:
    """Edges to every site from all neighbours within a cutoff, its own images among them.

    The graph depends neither on the order of sites nor on the choice of cell. Edges are sorted as those of
    :class:`NearestNeighbors`.

    Args:
        cutoff: largest distance, in angstrom; MEGNet's is 4 or 5.

    Raises:
        ValueError: ``cutoff`` is not positive.
    """

    def __init__(self, cutoff: float) -> None:
        self.cutoff = _checked(cutoff)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cutoff={self.cutoff})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add the edges to a batch, or to one crystal; see :meth:`NearestNeighbors.__call__`."""
        found = neighbors_within(*geometry(batch), self.cutoff, batch.z)
        return set_edges(batch, torch.stack([found.source, found.target]), found.shift, found.distance)


def site_ptr(batch: CrystalBatch) -> Tensor:
    """First site of each crystal, then N.

    Args:
        batch: crystals with ptr, or a single one without.

    Returns:
        [B + 1] int64.
    """
    return batch.ptr if "ptr" in batch else torch.tensor([0, batch.z.numel()], device=batch.z.device)


def geometry(batch: CrystalBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Where the sites of crystals lie.

    Args:
        batch: crystals, or a single one.

    Returns:
        [N, 3] positions, [B, 3, 3] lattice vectors and the :func:`site_ptr`.

    Raises:
        ValueError: formulas, which have no positions.
    """
    if AMOUNT in batch:
        raise ValueError(
            "the batch holds formulas, without positions: this graph needs crystals, and an encoder of formulas "
            "(roost) has CompositionGraph"
        )
    return batch.pos, batch.cell, site_ptr(batch)


def set_edges(batch: CrystalBatch, edge_index: Tensor, edge_shift: Tensor, edge_dist: Tensor) -> CrystalBatch:
    """Give a batch edges, and take away what hung on other ones: a line graph, classes of equals.

    Args:
        batch: crystals; changed in place.
        edge_index: [2, E] int64, source and target.
        edge_shift: [E, 3] int64, lattice image of the source.
        edge_dist: [E] lengths, in angstrom, rounded to the type of ``pos``.

    Returns:
        The batch.
    """
    forget(batch, (*LINE_KEYS, *EQUALS_KEYS))
    batch.edge_index, batch.edge_shift, batch.edge_dist = edge_index, edge_shift, edge_dist.to(batch.pos.dtype)
    return batch


def _plain_pairs(pos: Tensor, cell: Tensor, ptr: Tensor, supercell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`pyg_dim.native.dense_pairs.dense_pairs` finds, on any device, with gradients."""
    pos, cell, num_sites = pos.double(), cell.double(), ptr.diff()
    crystal_of_site = torch.repeat_interleave(num_sites, output_size=pos.size(0))
    repeats = torch.diagonal(supercell, dim1=1, dim2=2)
    images = repeats.prod(1)

    # Sites of the supercells: few, next to the pairs, so all that depends on the column alone is worked out here.
    width = num_sites * images
    # The sizes of all that follows; a GPU is asked for both at once.
    num_columns, num_pairs = torch.stack([width, width * num_sites]).sum(1).tolist()
    crystal = torch.repeat_interleave(width, output_size=num_columns)
    first = width.cumsum(0) - width
    column = torch.arange(crystal.numel(), device=pos.device) - first[crystal]
    source = ptr[crystal] + column // images[crystal]
    image = column % images[crystal]
    _, n1, n2 = repeats[crystal].unbind(1)
    offset = torch.stack([image // (n1 * n2), image // n2 % n1, image % n2], dim=1)
    place = pos[source] + (offset.to(pos.dtype).unsqueeze(1) @ cell[crystal]).squeeze(1)

    # Pairs: each site with all columns of its crystal.
    width = width[crystal_of_site]
    target = torch.repeat_interleave(width, output_size=num_pairs)
    start = first[crystal_of_site] - (width.cumsum(0) - width)
    column = torch.arange(target.numel(), device=pos.device) + start[target]
    period = supercell.to(pos.dtype) @ cell
    crystal = crystal_of_site[target]
    length, shift = minimum_image(place[column] - pos[target], crystal, period)
    shift = offset[column] + (shift.unsqueeze(1).double() @ supercell.double()[crystal]).squeeze(1).long()
    return torch.stack([source[column], target]), shift, length


def _checked(cutoff: float) -> float:
    if not 0 < cutoff < float("inf"):
        raise ValueError(f"cutoff must be a positive length in angstrom, not {cutoff}")
    return cutoff
