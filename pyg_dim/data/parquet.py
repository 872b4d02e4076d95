"""Crystals in Parquet files with OPTIMADE names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pyg_dim.data.elements import atomic_numbers, symbols
from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport, LeftOut

if TYPE_CHECKING:
    from pyg_dim.data.dataset import CrystalDataset

ID, LATTICE, SPECIES, POSITIONS = "immutable_id", "lattice_vectors", "species_at_sites", "cartesian_site_positions"
_DEPTHS: Final = {LATTICE: 2, SPECIES: 1, POSITIONS: 2}
"""The required columns, and how deep their lists are nested."""


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
    faults = _malformed_rows(table)
    if faults:
        report.left_out = [LeftOut(ids[row].as_py(), reason) for row, reason in sorted(faults.items())]
        keep = np.ones(table.num_rows, dtype=bool)
        keep[list(faults)] = False
        table, ids = table.filter(pa.array(keep)), ids.filter(pa.array(keep))
    return _decode(table, ids), report


def _read_file(file: Path) -> pa.Table:
    """The required and the numeric columns of one file."""
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            _check_columns(file, schema)
            wanted = [f.name for f in schema if f.name in (ID, *_DEPTHS) or _is_numeric(f.type)]
            table = parquet.read(columns=wanted).select(wanted)
        table.validate(full=True)
    except FileNotFoundError:
        raise
    # Damage shows where it is met: in the footer as ArrowInvalid, in a page as OSError, in a name as no UTF-8.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} is not a readable Parquet file: {error}; if it is damaged (a copy cut short?), write it anew"
        ) from error
    if ID not in wanted:
        return table
    try:
        return table.set_column(wanted.index(ID), ID, table[ID].cast(pa.string()))
    except pa.ArrowException as error:
        raise ValueError(f"{file}: column {ID} cannot be taken as text: {error}") from error


def _check_columns(file: Path, schema: pa.Schema) -> None:
    missing = [name for name in _DEPTHS if name not in schema.names]
    if missing:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; needed are the OPTIMADE columns {', '.join(_DEPTHS)}"
        )
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} has more than one column {', '.join(repeated)}")
    for name, depth in _DEPTHS.items():
        dtype = schema.field(name).type
        found, value = _nesting(dtype)
        if found != depth or (name != SPECIES and not _is_numeric(value)):
            what = "strings" if name == SPECIES else "numbers"
            raise ValueError(f"{file}: column {name} is {dtype}, expected lists of {what} nested {depth} deep")


def _is_numeric(dtype: pa.DataType) -> bool:
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


def _malformed_rows(table: pa.Table) -> dict[int, str]:
    """Rows whose lists cannot be laid side by side: null at any depth, or vectors that do not have three components."""
    faults: dict[int, str] = {}

    def mark(rows: np.ndarray, reason: str) -> None:
        for row in rows.tolist():
            faults.setdefault(row, reason)

    for name in _DEPTHS:
        mark(np.flatnonzero(_bits(pc.is_null(table[name]))), f"{name} missing")
    for name in _DEPTHS:
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


def _decode(table: pa.Table, ids: pa.Array) -> RawCrystals:
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
            if f.name not in (ID, *_DEPTHS)
        },
    )


def write_parquet(dataset: CrystalDataset, path: str | Path) -> None:
    """Write a data set in the layout that :func:`read_parquet` reads; missing labels become null.

    Args:
        dataset: crystals to write. Oxidation states are not written.
        path: file to write; an existing one is replaced once the new one is complete.
    """
    triple = pa.list_(pa.float64() if dataset.pos.dtype.itemsize == 8 else pa.float32(), 3)
    offsets = pa.array(dataset.ptr.numpy().astype(np.int32))
    species = pa.DictionaryArray.from_arrays(pa.array(dataset.z.numpy().astype(np.int8)), pa.array(symbols())).cast(
        pa.string()
    )
    positions = pa.FixedSizeListArray.from_arrays(pa.array(dataset.pos.numpy().ravel()), type=triple)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(dataset.cell.numpy().ravel()), type=triple)
    columns = {
        ID: dataset.ids,
        LATTICE: pa.FixedSizeListArray.from_arrays(rows, 3),
        SPECIES: pa.ListArray.from_arrays(offsets, species),
        POSITIONS: pa.ListArray.from_arrays(offsets, positions),
    }
    columns |= {name: pa.array(values.numpy(), from_pandas=True) for name, values in dataset.labels.items()}
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    pq.write_table(pa.table(columns), temporary, compression="zstd")
    os.replace(temporary, target)
