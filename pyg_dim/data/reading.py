"""Read crystals of any source into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pyg_dim.data.collect import ImportOptions, collect
from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport
from pyg_dim.data.sources.base import Entry, Source
from pyg_dim.data.sources.files import join_labels
from pyg_dim.data.sources.labels import read_labels, require_labels
from pyg_dim.data.sources.registry import open_source, together

CHUNK: Final = 500
"""Crystals that are read and checked together."""


def open_sources(
    sources: Sequence[str | Path],
    id_column: str | None = None,
    labels: str | Path | None = None,
    labels_id: str | None = None,
    units: Mapping[str, str] | None = None,
) -> Source:
    """Open sources as one, and give them labels and units.

    Args:
        sources: what :func:`pyg_dim.data.sources.registry.open_source` takes.
        id_column: column of identifiers, for formats that have columns or keys.
        labels: CSV file of labels, joined by identifier.
        labels_id: its column of identifiers; default: the first.
        units: name of a label -> unit, in place of what the sources say.

    Returns:
        The source.

    Raises:
        FileNotFoundError: a source or the file of labels is not there.
        ValueError: a source that cannot be read. Later, after the last crystal: the file of labels has none for them.
    """
    source = together([open_source(item, id_column) for item in sources])
    if labels is not None:
        table = read_labels(Path(labels), labels_id)
        source = join_labels(source, table, partial(require_labels, table, labels_id))
    source = _with_units(source, units or {})
    source.settings = {
        "sources": [str(item) for item in sources],
        "id_column": id_column,
        "labels": None if labels is None else str(labels),
        "labels_id": labels_id,
    }
    return source


def _with_units(source: Source, given: Mapping[str, str]) -> Source:
    units = {**source.units, **given}

    def entries() -> Iterator[Entry]:
        yield from source.entries()
        units.update(source.units)
        units.update(given)

    return replace(source, entries=entries, units=units)


def chunks(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Cut entries into lists.

    Args:
        entries: the entries.
        size: how many a list holds; the last one may be shorter.

    Yields:
        The lists.
    """
    iterator = iter(entries)
    while chunk := list(islice(iterator, size)):
        yield chunk


def read_crystals(source: Source, options: ImportOptions) -> tuple[RawCrystals, ImportReport]:
    """Read all crystals of a source into memory, in this process.

    Args:
        source: the crystals.
        options: what is done to them.

    Returns:
        The usable crystals, and the report.
    """
    report = ImportReport(source.name)
    parts = []
    with tqdm(total=source.total, desc="crystals", unit="", disable=None) as bar:
        for chunk in chunks(source.entries(), CHUNK):
            part = ImportReport(source.name)
            parts.append(collect(chunk, options, part))
            report.add(part)
            bar.update(len(chunk))
    raw = concatenate(parts)
    raw.units = {name: unit for name, unit in source.units.items() if name in raw.labels}
    for name in drop_texts({name: int(np.isfinite(values).sum()) for name, values in raw.labels.items()}, report):
        del raw.labels[name]
    report.notes += source.notes
    return raw, report


def drop_texts(values: Mapping[str, int], report: ImportReport) -> list[str]:
    """Columns that turned out to be no labels, because they hold text alone.

    Args:
        values: name of a label -> numbers found in it.
        report: changed in place.

    Returns:
        The names of those columns.
    """
    dropped = [name for name, count in values.items() if not count and name in report.not_numbers]
    for name in dropped:
        del report.not_numbers[name]
        report.notes.append(f"column {name!r} is not numeric and was not read")
    return dropped


def concatenate(parts: Sequence[RawCrystals]) -> RawCrystals:
    """Several parts as one; a label that a part lacks is missing for its crystals.

    Args:
        parts: crystals that have passed the checks.

    Returns:
        All crystals, in order.
    """
    names = list(dict.fromkeys(name for part in parts for name in part.labels))
    empty = np.zeros(0, dtype=np.int64)
    counts = np.concatenate([empty, *(part.species_counts for part in parts)])
    return RawCrystals(
        ids=pa.concat_arrays([pa.array([], pa.string()), *(part.ids for part in parts)]),
        species_counts=counts,
        position_counts=counts,
        z=np.concatenate([empty, *(part.z for part in parts)]),
        pos=np.concatenate([np.zeros((0, 3)), *(part.pos for part in parts)]),
        cell=np.concatenate([np.zeros((0, 3, 3)), *(part.cell for part in parts)]),
        labels={
            name: np.concatenate(
                [np.zeros(0), *(part.labels.get(name, np.full(len(part.ids), np.nan)) for part in parts)]
            )
            for name in names
        },
    )
