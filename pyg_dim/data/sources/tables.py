"""CSV and Parquet tables with a column of CIFs or structure dictionaries."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pyg_dim.data.parquet import is_numeric, readable, unit_of
from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import ID_COLUMNS, MAX_TEXT, Entry, Source
from pyg_dim.data.sources.labels import ask_for_separator, require_different, split_unit
from pyg_dim.data.sources.streams import DAMAGE, open_binary

STRUCTURE_COLUMNS: Final = ("structure", "cif")
"""Columns of crystals, the first that a table has, in capitals or not."""

_BATCH: Final = 256


def structure_column(names: Sequence[str]) -> str | None:
    """The column of crystals.

    Args:
        names: columns of a table.

    Returns:
        Its name; None where there is none.
    """
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in STRUCTURE_COLUMNS if name in lower), None)


def id_column(path: Path, names: Sequence[str], wanted: str | None) -> str | None:
    """The column of identifiers.

    Args:
        path: file.
        names: its columns.
        wanted: the column that the user named, if any.

    Returns:
        Its name; None where rows are to be numbered.

    Raises:
        ValueError: the table has no such column.
    """
    if wanted is not None and wanted not in names:
        raise ValueError(f"{path} has no column {wanted!r}; its columns are {', '.join(map(repr, names))}")
    return wanted or next((name for name in ID_COLUMNS if name in names), None)


def open_csv(path: Path, wanted_id: str | None = None) -> Source:
    """A CSV file, plain or compressed, with a column ``cif`` or ``structure``; its other columns are labels.

    Args:
        path: file; UTF-8.
        wanted_id: column of identifiers; default: the first of ID_COLUMNS that there is, else the number of the row.

    Returns:
        The source.

    Raises:
        ValueError: no CSV, or no such column.
    """
    header = next((row for _, row in _csv_rows(path)), None)
    if not isinstance(header, list):
        raise ValueError(f"{path} is no readable CSV file: {header or 'it is empty'}")
    names = [name.strip() for name in header]
    column = structure_column(names)
    if column is None:
        raise ValueError(
            f"{path} has no column {' or '.join(STRUCTURE_COLUMNS)}; its columns are {', '.join(map(repr, names))}"
            f"{ask_for_separator(names)}"
        )
    identifier = id_column(path, names, wanted_id)
    place = names.index(column)
    id_place = None if identifier is None else names.index(identifier)
    # A column without a name is the index that pandas writes.
    labels = {k: split_unit(name) for k, name in enumerate(names) if name and k not in (place, id_place)}
    require_different(path, [name for name, _ in labels.values()])

    def entries() -> Iterator[Entry]:
        rows = _csv_rows(path)
        next(rows)
        for number, (line, row) in enumerate(rows):
            name = str(number)
            if isinstance(row, UnusableCrystalError):
                yield Entry(f"{path.name}, line {line}", "fault", row, {})
                continue
            if len(row) != len(names):
                fault = UnusableCrystalError(
                    "row does not fit the columns", f"line {line}: {len(row)} values for {len(names)} columns"
                )
                yield Entry(name, "fault", fault, {})
                continue
            if id_place is not None and row[id_place]:
                name = _printable(row[id_place])
            if any(_printable(cell) != cell for cell in row):
                yield Entry(name, "fault", UnusableCrystalError("not UTF-8 text", f"line {line}"), {})
            else:
                yield Entry(name, "text", row[place], {label: row[k] for k, (label, _) in labels.items()})

    return Source(str(path), [path], entries, units={name: unit for name, unit in labels.values() if unit})


def _printable(cell: str) -> str:
    return cell if cell.isascii() else cell.encode("utf-8", "replace").decode("utf-8")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str] | UnusableCrystalError]]:
    """Rows with the number of their last line; at damage, what is wrong, and the end."""
    with open_binary(path) as stream:
        # Bytes that are no UTF-8 spoil their row alone.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text)
        while True:
            try:
                # The limit is one for all of the program.
                before = csv.field_size_limit(MAX_TEXT)
                try:
                    row = next(reader, None)
                finally:
                    csv.field_size_limit(before)
            except (csv.Error, ValueError, *DAMAGE) as error:
                yield reader.line_num, UnusableCrystalError("table damaged from here on", f"{error}"[:200])
                return
            if row is None:
                return
            if row:
                yield reader.line_num, row


def open_parquet_table(path: Path, column: str, wanted_id: str | None = None) -> Source:
    """A Parquet file with a column of CIFs or of structure dictionaries, as JSON or nested; numeric columns are labels.

    Args:
        path: file.
        column: column of the crystals.
        wanted_id: column of identifiers; default: the first of ID_COLUMNS that there is, else the number of the row.

    Returns:
        The source.

    Raises:
        ValueError: the column is neither text nor a structure, or there is no such column of identifiers.
    """
    with readable(path), pq.ParquetFile(path) as parquet:
        schema, total = parquet.schema_arrow, parquet.metadata.num_rows
    types = pa.types
    dtype = schema.field(column).type
    is_text = types.is_string(dtype) or types.is_large_string(dtype) or types.is_binary(dtype)
    if not (is_text or types.is_large_binary(dtype) or types.is_struct(dtype)):
        raise ValueError(f"{path}: column {column} is {dtype}, expected CIFs or structure dictionaries")
    identifier = id_column(path, schema.names, wanted_id)
    labels = {
        field.name: split_unit(field.name)
        for field in schema
        if is_numeric(field.type) and field.name not in (column, identifier)
    }
    require_different(path, [name for name, _ in labels.values()])
    units = {name: unit_of(schema.field(full)) or unit for full, (name, unit) in labels.items()}

    def entries() -> Iterator[Entry]:
        wanted = [name for name in schema.names if name in labels or name in (column, identifier)]
        number = 0
        with readable(path), pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    name = str(number) if identifier is None or row[identifier] is None else str(row[identifier])
                    number += 1
                    content = row[column]
                    found = {label: row[full] for full, (label, _) in labels.items()}
                    if content is None:
                        yield Entry(name, "fault", UnusableCrystalError(f"{column} missing"), {})
                    else:
                        yield Entry(name, "structure" if isinstance(content, dict) else "text", content, found)

    return Source(str(path), [path], entries, total, {name: unit for name, unit in units.items() if unit})
