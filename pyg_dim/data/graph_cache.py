"""Graphs of a data set, built once and kept in a file."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.graphs import set_edges
from pyg_dim.data.line_graph import LineGraph
from pyg_dim.data.loader import fill
from pyg_dim.data.replacing import replacing
from pyg_dim.data.sources.streams import require_proportion
from pyg_dim.data.symmetry import SymmetryClasses

_LOGGER = logging.getLogger(__name__)

_VERSION: Final = 1
"""Raised when the same parameters give other edges than before."""
_BATCH_SITES: Final = 1200
_BITS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as a floating-point number."""
_FACTOR: Final = 0x1E3779B97F4A7C15
"""Odd and without pattern, so that every bit of a factor reaches the bits above it in the product."""
_INTEGERS: Final = (np.int8, np.int16, np.int32, np.int64)


class GraphCache:
    """The edges of all crystals of a data set, in memory and in a file; it takes the place of the graph in a loader.

    The file says what it was made from: the parameters of the graph, and a checksum of species, positions and cells. A
    file that was made from something else, or is damaged, is made anew, with a message. Where it cannot be written, a
    message says so, and the graphs serve from memory.

    Graphs are built in the thread of the loader while a model computes, so this pays only where a model takes less time
    than its graphs (see the page on benchmarks).

    Args:
        dataset: the crystals; a loader that uses the cache must be of this data set.
        graph: what adds the edges, with all its parameters in its ``repr``.
        path: file, which ends in ``.npz``; made where it is not there.

    Raises:
        ValueError: ``path`` does not end in ``.npz``, or the graph adds more than edges.
    """

    def __init__(
        self, dataset: CrystalDataset, graph: Callable[[CrystalBatch], CrystalBatch], path: str | Path
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npz":
            raise ValueError(f"{self.path}: the name of a cache of graphs ends in .npz")
        if isinstance(graph, (LineGraph, SymmetryClasses)):
            raise ValueError(
                f"a cache keeps edges alone: put it inside, as in {type(graph).__name__}(GraphCache(dataset, "
                "graph.graph, path), ...)"
            )
        self.graph = graph
        self._num_sites = dataset.num_sites
        self._checksums = _checksums(dataset.z, dataset.pos, dataset.ptr, dataset.cell).cpu()
        key = _key(dataset, graph)
        arrays = self._read(key)
        if arrays is None:
            arrays = _build(dataset, graph)
            try:
                with replacing(self.path) as place, place.open("wb") as file:
                    np.savez(file, key=np.frombuffer(key.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
            except OSError as error:
                _LOGGER.warning("cannot write %s (%s): the graphs are kept in memory alone", self.path, error)
        self._ptr, self._source, self._target, self._shift, self._distance = (
            torch.from_numpy(arrays[name]) for name in ("ptr", "source", "target", "shift", "distance")
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.graph!r}, {str(self.path)!r})"

    def __call__(self, batch: CrystalBatch) -> CrystalBatch:
        """Add the edges to a batch.

        Args:
            batch: crystals of the data set, with row and ptr; changed in place.

        Returns:
            The batch with edge_index [2, E], edge_shift [E, 3] and edge_dist [E], on its device.

        Raises:
            ValueError: the crystals are not those of the data set, by sites, species, positions or cells.
        """
        rows, ptr = batch.row.cpu(), batch.ptr.cpu()
        if (
            int(rows.max()) >= len(self._num_sites)
            or not self._num_sites[rows].equal(ptr.diff())
            or not self._checksums[rows].equal(_checksums(batch.z, batch.pos, ptr, batch.cell).cpu())
        ):
            raise ValueError(
                f"{self.path} has the graphs of other crystals: make a cache of the data set that is loaded"
            )
        start = self._ptr[rows]
        count = self._ptr[rows + 1] - start
        crystal = torch.repeat_interleave(count)
        edge = torch.arange(crystal.numel()) + (start - (count.cumsum(0) - count))[crystal]
        first = ptr[crystal]
        device = batch.pos.device
        edge_index = torch.stack([self._source[edge] + first, self._target[edge] + first])
        shift, distance = self._shift[edge].long(), self._distance[edge]
        return set_edges(batch, edge_index.to(device), shift.to(device), distance.to(device))

    def _read(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of the file; None, with a message, where it has to be made."""
        if not self.path.exists():
            return None
        try:
            require_proportion(self.path)
            # Reading a member compares it with the checksum that the archive holds.
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            found = arrays.pop("key").tobytes().decode()
            sound = set(arrays) == {"ptr", "source", "target", "shift", "distance"}
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            _LOGGER.warning("%s is damaged (%s): the graphs are built anew", self.path, error)
            return None
        if found != key or not sound:
            _LOGGER.warning("%s was made of %s; now it is %s: the graphs are built anew", self.path, found, key)
            return None
        return arrays


def _checksums(z: Tensor, pos: Tensor, ptr: Tensor, cell: Tensor) -> Tensor:
    """One number for each crystal, which depends on every bit of its species, positions and cell, and on their order.

    Args:
        z: [N] int64, atomic numbers.
        pos: [N, 3] float, positions.
        ptr: [n + 1] int64 on the host, first site of each crystal, then N.
        cell: [n, 3, 3] float, of the type of the positions.

    Returns:
        [n] int64 on the device of the positions; sums of integers, so they do not depend on the order of adding.
    """
    counts = ptr.diff()
    crystal = torch.repeat_interleave(counts)
    place = (torch.arange(len(crystal)) - ptr[:-1][crystal]).to(pos.device)
    bits = _BITS[pos.element_size()]
    of_site = _mixed(torch.cat([z[:, None], pos.view(bits).long(), place[:, None]], dim=1))
    of_cell = _mixed(cell.flatten(1).view(bits).long())
    return of_cell.index_add(0, crystal.to(pos.device), of_site)


def _mixed(words: Tensor) -> Tensor:
    """One number of each row of integers; products that overflow wrap around, as they should."""
    total = torch.zeros_like(words[:, 0])
    for column in words.unbind(1):
        total = (total ^ column) * _FACTOR
        total = total ^ (total >> 29)
    return total * _FACTOR


def _key(dataset: CrystalDataset, graph: Callable[[CrystalBatch], CrystalBatch]) -> str:
    checksum = 0
    for part in (dataset.z, dataset.ptr, dataset.pos, dataset.cell):
        checksum = zlib.crc32(part.cpu().contiguous().numpy().data, checksum)
    dtype = str(dataset.pos.dtype).removeprefix("torch.")
    return json.dumps(
        {"graph": repr(graph), "crystals": len(dataset), "dtype": dtype, "checksum": checksum, "version": _VERSION}
    )


def _build(dataset: CrystalDataset, graph: Callable[[CrystalBatch], CrystalBatch]) -> dict[str, np.ndarray]:
    _LOGGER.info("building the graphs of %d crystals with %r", len(dataset), graph)
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for rows in fill(np.arange(len(dataset)), dataset.num_sites.numpy(), _BATCH_SITES):
            batch = graph(dataset.gather(rows))
            crystal = batch.batch[batch.edge_index[1]]
            source, target = batch.edge_index - batch.ptr[crystal]
            count = torch.bincount(crystal, minlength=batch.num_graphs)
            parts.append(tuple(v.cpu() for v in (count, source, target, batch.edge_shift, batch.edge_dist)))
    edges = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    return {
        "ptr": np.concatenate([[0], np.cumsum(edges[0])]),
        "source": _narrow(edges[1]),
        "target": _narrow(edges[2]),
        "shift": _narrow(edges[3]),
        "distance": edges[4],
    }


def _narrow(values: np.ndarray) -> np.ndarray:
    """In the smallest type that holds them."""
    most = int(np.abs(values).max(initial=0))
    return values.astype(next(dtype for dtype in _INTEGERS if most <= np.iinfo(dtype).max))
