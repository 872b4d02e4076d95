"""Files of embeddings that are written piece by piece."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pyg_dim.data.embedding_parts import EMBEDDED
from pyg_dim.data.embeddings import VECTORS
from pyg_dim.data.sources.base import ID_COLUMNS

if TYPE_CHECKING:
    from typing import Self


class EmbeddingFile(ABC):
    """A file that takes embeddings as they come; it is whole once the block around it has ended.

    Args:
        path: file to write.
        names: D names of the numbers of a vector.
        dtype: float32 or float64, of the vectors.
        about: plain values that tell how they were made; kept where the format has a place for it.
    """

    def __init__(self, path: Path, names: Sequence[str], dtype: torch.dtype, about: Mapping[str, Any]) -> None:
        self.path = path
        self.names = names
        self.kind = pa.float32() if dtype == torch.float32 else pa.float64()
        self.about = about

    @abstractmethod
    def write(self, ids: pa.Array, vectors: Tensor) -> None:
        """Add embeddings.

        Args:
            ids: [m] Arrow strings.
            vectors: [m, D], on the CPU.

        Raises:
            OSError: the disk is full, or cannot be written to.
        """

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ParquetEmbeddings(EmbeddingFile):
    """A column of identifiers and one of lists, what :func:`pyg_dim.data.embeddings.read_embeddings` reads."""

    def __init__(self, path: Path, names: Sequence[str], dtype: torch.dtype, about: Mapping[str, Any]) -> None:
        super().__init__(path, names, dtype, about)
        schema = pa.schema({ID_COLUMNS[0]: pa.string(), VECTORS: pa.list_(self.kind, len(names))})
        self._writer = pq.ParquetWriter(
            path, schema.with_metadata({EMBEDDED: json.dumps(dict(about))}), compression="zstd"
        )

    def write(self, ids: pa.Array, vectors: Tensor) -> None:
        """Add a row group; see :meth:`EmbeddingFile.write`."""
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.contiguous().numpy().ravel()), len(self.names))
        self._writer.write_table(pa.Table.from_arrays([ids, lists], schema=self._writer.schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class CsvEmbeddings(EmbeddingFile):
    """A column of identifiers, and one for each number."""

    def __init__(self, path: Path, names: Sequence[str], dtype: torch.dtype, about: Mapping[str, Any]) -> None:
        super().__init__(path, names, dtype, about)
        self._schema = pa.schema({ID_COLUMNS[0]: pa.string(), **dict.fromkeys(names, self.kind)})
        self._writer = pyarrow.csv.CSVWriter(path, self._schema)

    def write(self, ids: pa.Array, vectors: Tensor) -> None:
        """Add lines; see :meth:`EmbeddingFile.write`."""
        columns = [pa.array(column) for column in vectors.numpy().T]
        self._writer.write_table(pa.Table.from_arrays([ids, *columns], schema=self._schema))

    def close(self) -> None:
        """Write the last lines."""
        self._writer.close()


class NpzEmbeddings(EmbeddingFile):
    """Arrays ``ids`` [n] and ``vectors`` [n, D], without pickle; they are in memory until the file is written."""

    def __init__(self, path: Path, names: Sequence[str], dtype: torch.dtype, about: Mapping[str, Any]) -> None:
        super().__init__(path, names, dtype, about)
        self._ids: list[str] = []
        self._vectors: list[np.ndarray] = []

    def write(self, ids: pa.Array, vectors: Tensor) -> None:
        """Keep them; see :meth:`EmbeddingFile.write`."""
        self._ids += ids.to_pylist()
        self._vectors.append(vectors.numpy())

    def close(self) -> None:
        """Write all."""
        if self._vectors:
            # To an open file: NumPy adds its ending to names.
            with self.path.open("wb") as file:
                np.savez(file, ids=np.array(self._ids, dtype=np.str_), vectors=np.concatenate(self._vectors))


FILES: Final[dict[str, type[EmbeddingFile]]] = {
    ".parquet": ParquetEmbeddings,
    ".csv": CsvEmbeddings,
    ".npz": NpzEmbeddings,
}
"""Formats by the ending of the file."""
