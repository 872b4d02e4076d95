"""Parquet files with OPTIMADE columns, as LeMat-Bulk and others publish them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyg_dim.data.parquet import (
    DEPTHS,
    POSITIONS,
    SPECIES,
    check_columns,
    decode,
    is_numeric,
    malformed_rows,
    readable,
    unit_of,
)
from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import Entry, Source
from pyg_dim.data.sources.tables import id_column

_BATCH: Final = 2000
_DIMENSIONS, _FEATURES = "nperiodic_dimensions", "structure_features"


def open_optimade(path: Path, wanted_id: str | None = None) -> Source:
    """A Parquet file with ``lattice_vectors``, ``species_at_sites`` and ``cartesian_site_positions``.

    Other numeric columns are labels. Rows that OPTIMADE marks as disordered (``structure_features``) or as periodic in
    fewer than three directions (``nperiodic_dimensions``) are left out.

    Args:
        path: file.
        wanted_id: column of identifiers; default: ``immutable_id``, ``material_id`` or ``id``, else the number of the
            row.

    Returns:
        The source.

    Raises:
        ValueError: no Parquet file or a damaged one, or a column is missing.
    """
    with readable(path), pq.ParquetFile(path) as parquet:
        schema, total = parquet.schema_arrow, parquet.metadata.num_rows
    check_columns(path, schema)
    identifier = id_column(path, schema.names, wanted_id)
    labels = [f.name for f in schema if is_numeric(f.type) and f.name not in (*DEPTHS, identifier)]
    features = _FEATURES in schema.names and pa.types.is_list(schema.field(_FEATURES).type)
    wanted = [
        name for name in schema.names if name in (*DEPTHS, *labels, identifier) or (features and name == _FEATURES)
    ]

    def entries() -> Iterator[Entry]:
        number = 0
        with readable(path), pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=wanted):
                batch.validate(full=True)
                table = pa.Table.from_batches([batch])
                numbers = range(number, number + table.num_rows)
                number += table.num_rows
                given = [None] * table.num_rows if identifier is None else table[identifier].to_pylist()
                ids = [str(k) if name is None else _text(name) for k, name in zip(numbers, given, strict=True)]
                values = {name: table[name].to_pylist() for name in labels}
                faults = malformed_rows(table)
                for row, found in enumerate(table[_FEATURES].to_pylist() if features else ()):
                    if found and "disorder" in found:
                        faults.setdefault(row, "partial occupancy")
                for row, count in enumerate(values.get(_DIMENSIONS, ())):
                    if count not in (None, 3):
                        faults.setdefault(row, "not periodic in three directions")
                yield from _entries(table, ids, values, faults)

    units = {name: unit_of(schema.field(name)) for name in labels}
    return Source(str(path), [path], entries, total, {name: unit for name, unit in units.items() if unit})


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _entries(table: pa.Table, ids: list[str], values: dict[str, list[Any]], faults: dict[int, str]) -> Iterator[Entry]:
    whole = np.ones(table.num_rows, dtype=bool)
    whole[list(faults)] = False
    raw = decode(table.select(list(DEPTHS)).filter(pa.array(whole)), pa.nulls(int(whole.sum()), pa.string()))
    ends = np.cumsum(raw.species_counts)
    position_ends = np.cumsum(raw.position_counts)
    pos, cell = raw.pos.astype(np.float64), raw.cell.astype(np.float64)
    foreign_rows = np.searchsorted(ends, list(raw.foreign_symbols), side="right").tolist()
    foreign = dict(zip(foreign_rows, raw.foreign_symbols.values(), strict=True))
    place = np.cumsum(whole) - 1
    for row, name in enumerate(ids):
        k = int(place[row])
        if row in faults:
            yield Entry(name, "fault", UnusableCrystalError(faults[row]), {})
        elif raw.species_counts[k] != raw.position_counts[k]:
            reason = f"number of {SPECIES} differs from number of {POSITIONS}"
            yield Entry(name, "fault", UnusableCrystalError(reason), {})
        elif k in foreign:
            yield Entry(name, "fault", UnusableCrystalError("unknown or unsupported element", foreign[k]), {})
        else:
            sites = (
                raw.z[ends[k] - raw.species_counts[k] : ends[k]],
                pos[position_ends[k] - raw.position_counts[k] : position_ends[k]],
                cell[k],
            )
            yield Entry(name, "structure", sites, {label: column[row] for label, column in values.items()})
