"""Import crystals from any source into one Parquet file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pyg_dim import __version__
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.overlap import MIN_DISTANCE
from pyg_dim.data.parquet import ID, IMPORTED, table_of
from pyg_dim.data.parts import Parts
from pyg_dim.data.raw import ALREADY_TAKEN
from pyg_dim.data.reading import CHUNK, chunks, concatenate, drop_texts
from pyg_dim.data.replacing import replacing
from pyg_dim.data.report import ImportReport, LeftOut, printable
from pyg_dim.data.sources.base import Source
from pyg_dim.data.workers import Workers

_LOGGER = logging.getLogger(__name__)
_ROW_GROUP: Final = 10_000
_FEW: Final = 2000
"""Crystals that are read before other processes have started."""


def import_crystals(
    source: Source,
    out: str | Path,
    options: ImportOptions,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> ImportReport:
    """Read all crystals of a source and write those that can be used to a Parquet file, with a report beside it.

    Crystals are read in parts of some hundred, which lie in the folder ``OUT.parts`` until all are done. So memory does
    not grow with the source (but for identifiers and labels), and an import that was stopped can go on. The order is
    that of the source, whatever the number of workers.

    Args:
        source: the crystals, from :func:`pyg_dim.data.reading.open_sources`.
        out: Parquet file to write; the report is called alike, with the ending ``.report.json``.
        options: what is done to the crystals.
        workers: processes; with 1, all is done in this one.
        resume: whether to go on with the parts that a stopped import of the same source left.
        overwrite: whether to replace an existing file, and to discard the parts of a stopped import.

    Returns:
        The report.

    Raises:
        ValueError: the file, its report or parts of a stopped import are there, and nothing was said about them; the
            parts to go on with are of another import; a source is damaged as a whole; no crystal can be used. Nothing
            is written then. Also: a disk that is full or may not be written to; a file that is there stays as it is.
        FileNotFoundError: the folder of ``out`` does not exist.
    """
    out = Path(out)
    parts = Parts(out.with_name(out.name + ".parts"))
    # Once all parts are made, a file that is there is that of the import which is resumed, or was to be replaced by it.
    _check_target(out, source, overwrite or (resume and parts.are_made()))
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    try:
        parts.open(_plan(source, options), resume, overwrite)
    except OSError as error:
        raise ValueError(f"cannot write to {parts.folder}: {error.strerror or error}; choose another place") from error
    try:
        number = _read(source, options, parts, workers)
        parts.note_made()
        report = _merge(source, options, parts, number, out)
    except ValueError:
        # The source has to be mended first, and then these parts are stale.
        parts.remove()
        raise
    except BaseException as error:
        _LOGGER.warning("stopped; the finished parts lie in %s: go on with --resume", parts.folder)
        if isinstance(error, OSError):
            raise ValueError(
                f"cannot read {source.name} or write {out}: {error.strerror or error}; make room there, and go on with "
                "--resume"
            ) from error
        raise
    parts.remove()
    return report


def report_path(out: str | Path) -> Path:
    """Where the report of an import lies.

    Args:
        out: the Parquet file.

    Returns:
        ``crystals.report.json`` for ``crystals.parquet``.
    """
    return Path(out).with_suffix(".report.json")


def show_report(report: ImportReport, out: str | Path) -> None:
    """Print the counts of an import as a table.

    Args:
        report: the report.
        out: the file that was written.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "crystals", "for example", title=escape(printable(report.source)))
    table.columns[1].justify = "right"
    table.add_row("read", str(report.num_read))
    for reason, count in report.counts().items():
        example = next(str(item) for item in report.left_out if item.reason == reason)
        table.add_row(f"left out: {reason}", str(count), escape(example))
    table.add_row("kept", str(report.num_kept))
    table.add_row("kept, cell reduced", str(report.num_reduced))
    console = Console()
    console.print(table)
    for note in report.all_notes():
        console.print(escape(printable(note)))
    console.print(escape(printable(f"{out}\n{report_path(out)}: every crystal that was left out, and why")))


def _check_target(out: Path, source: Source, overwrite: bool) -> None:
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: the last argument is the file to write and must end in .parquet")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.parent}")
    for target in (out, report_path(out)):
        if target.exists() and any(target.samefile(file) for file in source.files):
            raise ValueError(f"{target} is both a source and a file to write; give OUT.parquet another name")
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists; --overwrite replaces it")


def _plan(source: Source, options: ImportOptions) -> dict[str, Any]:
    stats = [(str(file), file.stat()) for file in source.files]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return {"version": __version__, "options": asdict(options), "settings": source.settings, "files": files}


def _read(source: Source, options: ImportOptions, parts: Parts, workers: int) -> int:
    """Make all parts that are not there yet; returns their number."""
    number = 0
    if source.total is not None and source.total <= _FEW:
        workers = 1
    with (
        tqdm(total=source.total, desc="crystals", unit="", disable=None) as bar,
        Workers(workers, options, bar.update) as pool,
    ):
        for chunk in chunks(source.entries(), CHUNK):
            if parts.is_done(number):
                bar.update(len(chunk))
            else:
                pool.submit(chunk, parts.path(number))
            number += 1
    return number


def _merge(source: Source, options: ImportOptions, parts: Parts, number: int, out: Path) -> ImportReport:
    """Put the parts together, without identifiers that come again."""
    report = ImportReport(source.name)
    values: dict[str, int] = {}
    for part in range(number):
        table, found = parts.read(part)
        report.add(found)
        for name in table.column_names:
            values[name] = values.get(name, 0) + len(table) - table[name].null_count
    structural = table_of(concatenate([])).column_names
    labels = [name for name in values if name not in structural]
    dropped = drop_texts({name: values[name] for name in labels}, report)
    report.notes += source.notes
    empty = concatenate([])
    empty.labels = {name: np.zeros(0) for name in labels if name not in dropped}
    empty.units = source.units
    settings = {"version": __version__, **asdict(options), "min_distance": MIN_DISTANCE}
    schema = table_of(empty).schema.with_metadata({IMPORTED: json.dumps(settings)})

    filled = Counter(dict.fromkeys(empty.labels, 0))
    seen: set[str] = set()
    # The file itself takes its place last: where it is new, so is the report.
    with replacing(out) as file, replacing(report_path(out)) as report_file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for part in range(number):
                table = _fit(_without_repeated(parts.read(part)[0], seen, report), schema)
                filled.update({name: len(table) - table[name].null_count for name in filled})
                waiting.append(table)
                if sum(map(len, waiting)) >= _ROW_GROUP or part == number - 1:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=2 * _ROW_GROUP)
                    waiting = []
        if not seen:
            raise ValueError(f"no usable crystal\n{report}")
        report.notes.append(_labels_text(filled, source.units, report.num_kept))
        if strange := sorted(source.units.keys() - filled.keys()):
            report.notes.append(f"there is no label {', '.join(strange)}: a unit was given and not used")
        text = _report_text(report, settings, filled, source.units)
        # Names of files need not be UTF-8; the escape is one of JSON too.
        report_file.write_text(text, encoding="utf-8", errors="backslashreplace")
    return report


def _without_repeated(table: pa.Table, seen: set[str], report: ImportReport) -> pa.Table:
    """The crystals whose identifiers have not been seen; all of them are entered."""
    keep = []
    for name in table[ID].to_pylist():
        keep.append(name not in seen)
        if name in seen:
            report.left_out.append(LeftOut(name, ALREADY_TAKEN))
        seen.add(name)
    return table if all(keep) else table.filter(pa.array(keep))


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _labels_text(values: Mapping[str, int], units: Mapping[str, str], kept: int) -> str:
    texts = [f"{name} ({', '.join(filter(None, [units.get(name), f'{n} of {kept}']))})" for name, n in values.items()]
    return f"labels: {', '.join(texts) or 'none'}"


def _report_text(
    report: ImportReport, settings: Mapping[str, Any], values: Mapping[str, int], units: Mapping[str, str]
) -> str:
    content = {
        "source": report.source,
        "settings": settings,
        "read": report.num_read,
        "kept": report.num_kept,
        "left_out": report.counts(),
        "cells_reduced": report.num_reduced,
        "labels": {
            name: {"unit": units.get(name), "values": count, "not_numbers": asdict(found) if found else None}
            for name, count in values.items()
            for found in [report.not_numbers.get(name)]
        },
        "notes": report.all_notes(),
        "remarks": report.remarks,
        "rejected": [asdict(item) for item in report.left_out],
    }
    return json.dumps(content, indent=1, ensure_ascii=False)
