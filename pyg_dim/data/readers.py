"""Readers of crystals in files other than Parquet."""

from __future__ import annotations

import csv
import gzip
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport
from pyg_dim.data.structures import UnusableCrystalError, collect

LABEL_FILE: Final = "id_prop.csv"
"""Labels beside CIF files, as in CGCNN: identifier (file name without ending), value."""


def read_cif_folder(path: str | Path) -> tuple[RawCrystals, ImportReport]:
    """Read all CIF files of a folder; the first structure of each.

    The identifier is the file name without ending. If the folder holds an ``id_prop.csv``, its columns after the
    identifier are labels, called ``target`` (``target_2`` ...) unless a first line gives them names.

    Args:
        path: folder.

    Returns:
        The crystals in primitive cells, and a report that lists the files that could not be used.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no CIF file in it, or no usable one.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder: {path}")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".cif")
    if not files:
        raise ValueError(f"the folder {path} holds no CIF file (*.cif)")
    report = ImportReport(str(path))
    names = [file.stem for file in files]
    labels = _read_labels(path / LABEL_FILE, names, report) if (path / LABEL_FILE).exists() else {}
    return collect(_parse_all(files), labels, report), report


def _parse_all(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for file in tqdm(files, desc="CIF files", disable=None):
        yield file.stem, _parse_cif(file)


def _parse_cif(file: Path) -> Any:
    from pymatgen.io.cif import CifParser

    try:
        with warnings.catch_warnings():
            # pymatgen warns of every rounded coordinate; what makes a file unusable is an error or found later.
            warnings.simplefilter("ignore")
            structures = CifParser(file).parse_structures(primitive=False, on_error="raise")
    # A parser fed with a broken file raises whatever its code runs into; the file is reported, the others go on.
    except Exception as error:
        return UnusableCrystalError("unreadable CIF", f"{type(error).__name__}: {error}".splitlines()[0])
    return structures[0] if structures else UnusableCrystalError("unreadable CIF", "no structure in it")


def _read_labels(file: Path, names: list[str], report: ImportReport) -> dict[str, list[float]]:
    with file.open(newline="", encoding="utf-8-sig") as handle:
        rows = [[cell.strip() for cell in row] for row in csv.reader(handle) if any(cell.strip() for cell in row)]
    if not rows or len(rows[0]) < 2:
        raise ValueError(f"{file}: expected lines of an identifier and a value, separated by a comma")
    width = len(rows[0])
    has_header = rows[0][0] not in names and all(_number(cell) is None for cell in rows[0][1:])
    header = rows.pop(0)[1:] if has_header else ["target", *(f"target_{k}" for k in range(2, width))]
    table: dict[str, list[str]] = {row[0]: row[1:] for row in rows}
    unreadable = 0
    labels: dict[str, list[float]] = {column: [] for column in header}
    for name in names:
        for k, column in enumerate(header):
            text = table[name][k] if name in table and k < len(table[name]) else ""
            value = _number(text)
            unreadable += bool(text) and value is None
            labels[column].append(math.nan if value is None else value)
    without = sum(name not in table for name in names)
    unused = len(table.keys() - set(names))
    for count, what in (
        (without, "CIF files without a line, their labels are missing"),
        (unused, "lines without a CIF file"),
        (unreadable, "values that are no number, treated as missing"),
    ):
        if count:
            report.notes.append(f"{file.name}: {count} {what}")
    return labels


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_matbench_json(path: str | Path) -> tuple[RawCrystals, ImportReport]:
    """Read a Matbench file: pandas' "split" JSON, plain or compressed by gzip, with pymatgen dictionaries.

    The column ``structure`` holds the crystals; numeric columns are labels under their own names; identifiers are the
    index.

    Args:
        path: file.

    Returns:
        The crystals in primitive cells, and a report that lists those that could not be used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, no column of structures, or no usable crystal.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    data = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        index, columns, rows = content["index"], content["columns"], content["data"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no pandas 'split' JSON (index, columns, data): {error!r}") from error
    if "structure" not in columns:
        raise ValueError(f"{path} has no column 'structure'; its columns are {', '.join(map(repr, columns))}")
    report = ImportReport(str(path))
    labels = {}
    for k, column in enumerate(columns):
        if column == "structure":
            continue
        values = [row[k] for row in rows]
        if all(value is None or isinstance(value, int | float) for value in values):
            labels[column] = [math.nan if value is None else float(value) for value in values]
        else:
            report.notes.append(f"column {column!r} is not numeric and was not read")
    place = columns.index("structure")
    return collect(((str(name), row[place]) for name, row in zip(index, rows, strict=True)), labels, report), report
