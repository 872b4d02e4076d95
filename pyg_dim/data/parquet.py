"""Crystals in Parquet files with OPTIMADE names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pyg_dim.data.elements import atomic_numbers, symbols
from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.replacing import replacing
from pyg_dim.data.report import ImportReport, LeftOut

if TYPE_CHECKING:
    from pyg_dim.data.dataset import CrystalDataset

ID, LATTICE, SPECIES, POSITIONS = "immutable_id", "lattice_vectors", "species_at_sites", "cartesian_site_positions"
DEPTHS: Final = {LATTICE: 2, SPECIES: 1, POSITIONS: 2}
"""The required columns, and how deep their lists are nested."""

_UNIT: Final = b"unit"
"""Key of the unit in the metadata of a column."""

IMPORTED: Final = b"pyg_dim"
"""Key, in the metadata of a file, of what :mod:`pyg_dim.data.importing` says about it."""


def read_parquet(path: str | Path) -> tuple[RawCrystals, ImportReport]:
    """Read crystals from a Parquet file, or a folder of them, with OPTIMADE column names.

    ``lattice_vectors`` (3 x 3, angstrom), ``species_at_sites`` (symbols) and ``cartesian_site_positions`` ([n, 3],
    angstrom) are required; ``immutable_id`` defaults to the row number. Every other numeric column is a label, null =
    missing. Cells are taken as they are: they are not reduced to primitive ones, and distances between sites are not
    looked at. The files of a folder may differ in their labels: one that a file lacks is missing for its crystals.

    Args:
        path: file or folder.

    Returns:
        The crystals, and a report that lists the malformed rows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a Parquet file or a damaged one, a folder without one, files that do not fit together, or a
            required column is absent or of another type.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise ValueError(f"the folder {path} holds no Parquet file (*.parquet)")
    shards = [_read_file(file) for file in files]
    try:
        table = pa.concat_tables(shards, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(
            f"the Parquet files in {path} have columns of one name and different types: {error}"
        ) from error
    if ID in table.column_names:
        ids = pc.fill_null(table[ID], "null")
    else:
        ids = pa.array([str(row) for row in range(table.num_rows)])
    ids = _single_array(ids)

    report = ImportReport(str(path), table.num_rows)
    report.notes += dict.fromkeys(note for shard in shards for note in history(shard.schema))
    faults = malformed_rows(table)
    if faults:
        report.left_out = [LeftOut(ids[row].as_py(), reason) for row, reason in sorted(faults.items())]
        keep = np.ones(table.num_rows, dtype=bool)
        keep[list(faults)] = False
        table, ids = table.filter(pa.array(keep)), ids.filter(pa.array(keep))
    return decode(table, ids), report


def has_optimade_columns(path: Path) -> bool:
    """Whether a path is a Parquet file, or a folder of them, that :func:`read_parquet` is for.

    Args:
        path: anything.

    Returns:
        False for files of other formats, and for Parquet files with a column of structures instead.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * (path.suffix == ".parquet" and path.is_file())
    if not files:
        return False
    with readable(files[0]), pq.ParquetFile(files[0]) as parquet:
        return set(DEPTHS) <= set(parquet.schema_arrow.names)


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what damage to a Parquet file raises inside of the block into an error that names the file.

    Args:
        file: the file that is read in the block.

    Raises:
        ValueError: the file is damaged or no Parquet file.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    # Damage shows where it is met: in the footer as ArrowInvalid, in a page as OSError, in a name as no UTF-8.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is not a readable Parquet file: {error}; if it is damaged (a copy cut short?), write it anew"
        ) from error


def unit_of(column: pa.Field) -> str:
    """The unit that a column says it has.

    Args:
        column: column of a Parquet file.

    Returns:
        The unit; empty where there is none.
    """
    return ((column.metadata or {}).get(_UNIT) or b"").decode("utf-8", "replace")


def history(schema: pa.Schema) -> list[str]:
    """What an import did to the crystals of a file.

    Args:
        schema: columns of the file.

    Returns:
        One sentence; none where the file is of another program.
    """
    text = (schema.metadata or {}).get(IMPORTED)
    if text is None:
        return []
    try:
        done = json.loads(text)
        cells = f"primitive cells (to {done['symprec']} Å)" if done["primitive"] else "cells as they were"
        return [f"imported by pyg_dim {done['version']}: {cells}, no sites nearer than {done['min_distance']} Å"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []  # the note of another program


def _read_file(file: Path) -> pa.Table:
    """The required and the numeric columns of one file."""
    with readable(file):
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            check_columns(file, schema)
            wanted = [f.name for f in schema if f.name in (ID, *DEPTHS) or is_numeric(f.type)]
            table = parquet.read(columns=wanted).select(wanted)
        table.validate(full=True)
    if ID not in wanted:
        return table
    try:
        return table.set_column(wanted.index(ID), ID, table[ID].cast(pa.string()))
    except pa.ArrowException as error:
        raise ValueError(f"{file}: column {ID} cannot be taken as text: {error}") from error


def check_columns(file: Path, schema: pa.Schema) -> None:
    """Refuse a file that lacks a required column, or has one of another type or twice.

    Args:
        file: the file, for messages.
        schema: its columns.

    Raises:
        ValueError: the file is refused; the message says why.
    """
    missing = [name for name in DEPTHS if name not in schema.names]
    if missing:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; needed are the OPTIMADE columns {', '.join(DEPTHS)}"
        )
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} has more than one column {', '.join(repeated)}")
    for name, depth in DEPTHS.items():
        dtype = schema.field(name).type
        found, value = _nesting(dtype)
        if found != depth or (name != SPECIES and not is_numeric(value)):
            what = "strings" if name == SPECIES else "numbers"
            raise ValueError(f"{file}: column {name} is {dtype}, expected lists of {what} nested {depth} deep")


def is_numeric(dtype: pa.DataType) -> bool:
    """Whether a column of this type is a label.

    Args:
        dtype: type of the column.

    Returns:
        True for whole, floating-point, decimal and Boolean numbers.
    """
    types = pa.types
    return types.is_integer(dtype) or types.is_floating(dtype) or types.is_boolean(dtype) or types.is_decimal(dtype)


def _nesting(dtype: pa.DataType) -> tuple[int, pa.DataType]:
    """How deep lists are nested, and what the innermost hold."""
    depth = 0
    while pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        depth, dtype = depth + 1, dtype.value_type
    return depth, dtype


def _single_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def malformed_rows(table: pa.Table) -> dict[int, str]:
    """Rows whose lists cannot be laid side by side: null at any depth, or vectors that do not have three components.

    Args:
        table: the required columns.

    Returns:
        Row -> what is wrong.
    """
    faults: dict[int, str] = {}

    def mark(rows: np.ndarray, reason: str) -> None:
        for row in rows.tolist():
            faults.setdefault(row, reason)

    for name in DEPTHS:
        mark(np.flatnonzero(_bits(pc.is_null(table[name]))), f"{name} missing")
    for name in DEPTHS:
        column = _single_array(table[name])
        inner, parent = pc.list_flatten(column), np.asarray(pc.list_parent_indices(column))
        mark(np.unique(parent[_bits(pc.is_null(inner))]), f"{name} holds a null")
        if name != SPECIES:
            bad = ~_bits(pc.fill_null(pc.equal(pc.list_value_length(inner), 3), False))
            mark(np.unique(parent[bad]), f"{name} holds a vector without three components")
        if name == LATTICE:
            mark(
                np.flatnonzero(~_bits(pc.fill_null(pc.equal(pc.list_value_length(column), 3), False))),
                f"{name} does not hold three vectors",
            )
    return faults


def _bits(mask: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(mask, dtype=bool)


def decode(table: pa.Table, ids: pa.Array) -> RawCrystals:
    """Lay the rows of a table side by side.

    Args:
        table: the required columns, without malformed rows, and labels.
        ids: identifiers.

    Returns:
        The crystals, not yet checked.
    """

    def vectors(column: pa.Array) -> np.ndarray:
        return pc.list_flatten(pc.list_flatten(column)).to_numpy(zero_copy_only=False).reshape(-1, 3)

    species = _single_array(table[SPECIES])
    names = pc.list_flatten(species).dictionary_encode()
    numbers = np.array([atomic_numbers().get(name, 0) for name in names.dictionary.to_pylist()], dtype=np.int64)
    code = names.indices.to_numpy()
    z = numbers[code] if len(numbers) else np.zeros(0, dtype=np.int64)
    foreign = np.flatnonzero(z == 0)
    positions = _single_array(table[POSITIONS])
    return RawCrystals(
        ids=ids,
        species_counts=pc.list_value_length(species).to_numpy().astype(np.int64),
        position_counts=pc.list_value_length(positions).to_numpy().astype(np.int64),
        z=z,
        foreign_symbols=dict(zip(foreign.tolist(), names.take(pa.array(foreign)).to_pylist(), strict=True)),
        pos=vectors(positions),
        cell=vectors(_single_array(table[LATTICE])).reshape(-1, 3, 3),
        labels={
            # Not "safe": a whole number beyond 2^53 is rounded, and is no reason to refuse a file.
            f.name: table[f.name].cast(pa.float64(), safe=False).to_numpy()
            for f in table.schema
            if f.name not in (ID, *DEPTHS)
        },
        units={f.name: unit_of(f) for f in table.schema if unit_of(f)},
    )


def write_parquet(dataset: CrystalDataset, path: str | Path) -> None:
    """Write a data set in the layout that :func:`read_parquet` reads; missing labels become null.

    Args:
        dataset: crystals to write, with the units of their labels. Oxidation states are not written.
        path: file to write; an existing one is replaced once the new one is complete.
    """
    counts = dataset.num_sites.numpy()
    raw = RawCrystals(
        ids=dataset.ids,
        species_counts=counts,
        position_counts=counts,
        z=dataset.z.numpy(),
        pos=dataset.pos.numpy(),
        cell=dataset.cell.numpy(),
        labels={name: values.numpy() for name, values in dataset.labels.items()},
        units=dataset.units,
    )
    with replacing(path) as file:
        pq.write_table(table_of(raw), file, compression="zstd")


def table_of(raw: RawCrystals) -> pa.Table:
    """Crystals as an Arrow table with OPTIMADE column names.

    Args:
        raw: sound crystals.

    Returns:
        The table; missing labels are null, and units lie in the metadata of the columns.

    Raises:
        ValueError: a label has the name of a required column.
    """
    taken = [name for name in (ID, *DEPTHS) if name in raw.labels]
    if taken:
        raise ValueError(f"labels cannot be called {', '.join(taken)}: these columns hold the crystals; rename them")
    triple = pa.list_(pa.float64() if raw.pos.dtype.itemsize == 8 else pa.float32(), 3)
    offsets = pa.array(np.concatenate([[0], np.cumsum(raw.species_counts)]).astype(np.int32))
    species = pa.DictionaryArray.from_arrays(pa.array(raw.z.astype(np.int8)), pa.array(symbols())).cast(pa.string())
    positions = pa.FixedSizeListArray.from_arrays(pa.array(raw.pos.ravel()), type=triple)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(raw.cell.ravel().astype(raw.pos.dtype)), type=triple)
    columns = {
        ID: raw.ids,
        LATTICE: pa.FixedSizeListArray.from_arrays(rows, 3),
        SPECIES: pa.ListArray.from_arrays(offsets, species),
        POSITIONS: pa.ListArray.from_arrays(offsets, positions),
    }
    columns |= {name: pa.array(values, from_pandas=True) for name, values in raw.labels.items()}
    fields = [
        pa.field(name, column.type, metadata={_UNIT: raw.units[name]} if name in raw.units else None)
        for name, column in columns.items()
    ]
    return pa.table(columns, schema=pa.schema(fields))
