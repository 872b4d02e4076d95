"""Tables of embeddings: a vector for each crystal or formula, made elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.embedding_parts import require_whole
from pyg_dim.data.formula import parse_formulas
from pyg_dim.data.parquet import is_numeric, readable
from pyg_dim.data.replacing import replacing
from pyg_dim.data.sources.base import ID_COLUMNS

TABLES: Final = (".parquet", ".csv")
"""Endings of the files."""
VECTORS: Final = "embedding"
"""Column of the vectors, as lists of numbers, in a Parquet file."""
FORMULA_COLUMNS: Final = ("formula", "composition")
"""Columns of formulas, the first that a table has, where it has no column of identifiers."""

_DIGITS: Final = 8
"""Digits in which the shares of an element are equal where formulas are."""


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings by the name of what they are of.

    Attributes:
        path: file that they were read from.
        by: column of the names: one of identifiers or of formulas.
        names: m names.
        vectors: [m, F] float32 or float64.
    """

    path: Path
    by: str
    names: Sequence[str]
    vectors: Tensor

    def of(self, dataset: CrystalDataset) -> Tensor:
        """The embeddings of the crystals of a data set.

        Joined by identifiers, or by formulas, whatever their order of elements and multiple; a crystal whose formula
        the table has several times is given the mean of these, which is what a squared error would teach.

        Args:
            dataset: n crystals.

        Returns:
            [n, F], NaN for crystals that the table does not have.

        Raises:
            ValueError: no crystal is in the table, an identifier that it has twice, or a text that is no formula.
        """
        by_formula = self.by in FORMULA_COLUMNS
        texts = [dataset.formula(row) for row in range(len(dataset))] if by_formula else dataset.ids.to_pylist()
        wanted: Sequence[Hashable] = texts
        given: Sequence[Hashable] = self.names
        if by_formula:
            wanted, given = _compositions(texts, "the data"), _compositions(self.names, str(self.path))
        elif twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise ValueError(f"{self.path} has more than one embedding of {twice[0]!r} in column {self.by!r}")
        place = {name: number for number, name in enumerate(dict.fromkeys(given))}
        rows = torch.tensor([place.get(name, -1) for name in wanted])
        if not (rows >= 0).any():
            raise ValueError(
                f"{self.path} has no embedding of any crystal of {dataset.report.source}: its column {self.by!r} holds "
                f"{self.names[0]!r} for instance, the data hold {texts[0]!r}; a table without a column of identifiers "
                f"({', '.join(ID_COLUMNS)}) is joined by {' or '.join(FORMULA_COLUMNS)}"
            )
        group = torch.tensor([place[name] for name in given])
        sums = self.vectors.new_zeros(len(place), self.vectors.size(1)).index_add(0, group, self.vectors)
        means = sums / torch.bincount(group)[:, None]
        return torch.where((rows >= 0)[:, None], means[rows], torch.nan)


def read_embeddings(path: str | Path) -> EmbeddingTable:
    """Read a table of embeddings.

    Args:
        path: Parquet or CSV file, or a folder of parts that ``pyg-dim embed --shard`` has written. Names are in its
            column ``immutable_id``, ``material_id`` or ``id``, else in ``formula`` or ``composition``. A column
            ``embedding`` of a Parquet file holds the vectors as lists of one length; without it, all other columns are
            numbers, one dimension each, in their order.

    Returns:
        The table.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a damaged one, or one without names or vectors; the message names the column
            or the row.
    """
    path = Path(path)
    if path.is_dir():
        return _embeddings_of(path, pa.concat_tables([_read_parquet(part) for part in require_whole(path)]))
    if path.suffix not in TABLES:
        raise ValueError(f"{path}: embeddings are read from files that end with {' or '.join(TABLES)}")
    if not path.is_file():
        raise FileNotFoundError(f"no table of embeddings at {path}")
    return _embeddings_of(path, _read_csv(path) if path.suffix == ".csv" else _read_parquet(path))


def write_embeddings(path: str | Path, names: Sequence[str], vectors: Tensor, by: str = ID_COLUMNS[0]) -> None:
    """Write embeddings as a table that :func:`read_embeddings` reads.

    Args:
        path: Parquet file to write; an existing one is replaced once the new one is complete.
        names: m identifiers or formulas.
        vectors: [m, F] float32 or float64.
        by: column of the names: one of identifiers, or ``"formula"``.

    Raises:
        ValueError: another number of names than vectors, a column of another name, or a path that does not end with
            ``.parquet``.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: embeddings are written as Parquet; choose a name that ends with .parquet")
    if by not in (*ID_COLUMNS, *FORMULA_COLUMNS):
        raise ValueError(f"column {by!r} holds no names: choose one of {', '.join((*ID_COLUMNS, *FORMULA_COLUMNS))}")
    if vectors.dim() != 2 or len(vectors) != len(names) or not vectors.numel():
        raise ValueError(f"{len(names)} names for vectors of shape {list(vectors.shape)}, which must be [m, F]")
    flat = pa.array(vectors.detach().cpu().contiguous().numpy().ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.size(1))
    with replacing(path) as file:
        pq.write_table(pa.table({by: pa.array(names, pa.string()), VECTORS: lists}), file, compression="zstd")


def _embeddings_of(path: Path, table: pa.Table) -> EmbeddingTable:
    by = _name_column(path, table.column_names)
    names = table[by].cast(pa.string()).to_pylist()
    if not names or None in names:
        raise ValueError(f"{path}: column {by!r} " + ("lacks a name" if names else "is empty"))
    vectors = _lists(path, table[VECTORS], names) if VECTORS in table.column_names else _columns(path, table)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(f"{path}: the embedding of {names[int(np.argmin(finite))]!r} holds a number that is missing")
    return EmbeddingTable(path, by, names, torch.from_numpy(vectors))


def _read_parquet(path: Path) -> pa.Table:
    with readable(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        # Beside the vectors there may be anything.
        return file.read(columns=[_name_column(path, names), VECTORS] if VECTORS in names else None)


def _read_csv(path: Path) -> pa.Table:
    text = {name: pa.string() for name in (*ID_COLUMNS, *FORMULA_COLUMNS)}
    try:
        return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=text))
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable CSV file: {error}") from error


def _name_column(path: Path, columns: Sequence[str]) -> str:
    for name in (*ID_COLUMNS, *FORMULA_COLUMNS):
        if name in columns:
            return name
    raise ValueError(
        f"{path} has no column of identifiers ({', '.join(ID_COLUMNS)}) or formulas ({', '.join(FORMULA_COLUMNS)}); "
        f"its columns are {', '.join(columns[:5])}" + (", ..." if len(columns) > 5 else "")
    )


def _lists(path: Path, column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """[m, F] numbers of a column of lists."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not is_numeric(kind.value_type):
        raise ValueError(f"{path}: column {VECTORS!r} is {kind}, expected lists of numbers")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if other := np.flatnonzero((lengths != lengths[0]) | (lengths == 0)).tolist():
        raise ValueError(
            f"{path}: the embedding of {names[other[0]]!r} has {lengths[other[0]]} numbers; all must have as many as "
            f"the first, {lengths[0]}, and at least one"
        )
    flat = column.combine_chunks().flatten()
    return _numbers(flat).reshape(len(names), -1)


def _columns(path: Path, table: pa.Table) -> np.ndarray:
    """[m, F] numbers of the columns that are no names."""
    fields = [field for field in table.schema if field.name not in (*ID_COLUMNS, *FORMULA_COLUMNS)]
    if not fields:
        raise ValueError(f"{path} has no column of numbers and none called {VECTORS!r}: it holds no embeddings")
    if text := [field.name for field in fields if not is_numeric(field.type)]:
        raise ValueError(f"{path}: column {text[0]!r} holds something else than numbers; take it out, or mend it")
    return np.stack([_numbers(table[field.name]) for field in fields], axis=1)


def _numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    kind = pa.float32() if values.type == pa.float32() else pa.float64()
    # A copy, since the memory of Arrow is not to be written to; null becomes NaN.
    return np.array(values.cast(kind).to_numpy(zero_copy_only=False))


def _compositions(texts: Sequence[str], source: str) -> list[tuple[tuple[int, float], ...]]:
    """Elements with their shares, which formulas of one composition have in common."""
    unique = list(dict.fromkeys(texts))
    found = parse_formulas(unique)
    for row, (reason, _) in found.faults.items():
        raise ValueError(f"{source}: {unique[row]!r} is no formula: {reason}")
    # As many digits as data sets write.
    written = np.array([float(f"{amount:g}") for amount in found.amount])
    ends = found.counts.cumsum().tolist()
    known: dict[str, tuple[tuple[int, float], ...]] = {}
    for text, begin, end in zip(unique, [0, *ends], ends, strict=False):
        share = (written[begin:end] / written[begin:end].sum()).round(_DIGITS)
        known[text] = tuple(zip(found.z[begin:end].tolist(), share.tolist(), strict=True))
    return [known[text] for text in texts]
