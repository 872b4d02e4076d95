"""Readers of crystals in files other than Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport
from pyg_dim.data.structures import UnusableCrystalError, collect

LABEL_FILE: Final = "id_prop.csv"
"""Labels beside CIF files, as in CGCNN: identifier (file name without ending), value."""

_SPLIT_KEYS: Final = ("index", "columns", "data")
_EXAMPLES: Final = 3


def read_cif_folder(path: str | Path) -> tuple[RawCrystals, ImportReport]:
    """Read all CIF files of a folder; the first structure of each.

    The identifier is the file name without ending. If the folder holds an ``id_prop.csv``, its columns after the
    identifier are labels, called ``target`` (``target_2`` ...) unless a first line gives them names. Lines of it with
    another number of fields, or with an identifier that an earlier line has, are not used, with a note.

    Args:
        path: folder.

    Returns:
        The crystals in primitive cells, and a report that lists the files that could not be used.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no CIF file in it or no usable one, or an ``id_prop.csv`` that cannot be read.
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
    # Some write the identifier with the ending of the file.
    lines = [(number, [re.sub(r"\.cif$", "", name, flags=re.I), *cells]) for number, (name, *cells) in _csv_lines(file)]
    if not lines or len(lines[0][1]) < 2:
        raise ValueError(f"{file}: expected lines of an identifier and a value, separated by a comma")
    name, *cells = lines[0][1]
    if name not in names and all(_number(cell) is None for cell in cells):
        header = _column_names(file, cells)
        lines = lines[1:]
    else:
        header = ["target", *(f"target_{k}" for k in range(2, len(cells) + 1))]

    table: dict[str, list[str]] = {}
    malformed, unreadable = [], []
    for number, (name, *cells) in lines:
        if not name:
            malformed.append(f"line {number}: no identifier")
        elif name in table:
            malformed.append(f"line {number}: {name} once more")
        elif len(cells) < len(header) or any(cells[len(header) :]):
            malformed.append(f"line {number}: {len(cells) + 1} fields, not {len(header) + 1}")
        else:
            table[name] = cells
            bad = [cell for cell in cells[: len(header)] if cell and _number(cell) is None]
            unreadable += [f"line {number}: {cell}" for cell in bad]
    without = [name for name in names if name not in table]
    unused = sorted(table.keys() - set(names))
    for found, what in (
        (malformed, "lines not used"),
        (unreadable, "values that are no number, treated as missing"),
        (without, "CIF files without a line, their labels are missing"),
        (unused, "lines without a CIF file"),
    ):
        if found:
            more = ", ..." if len(found) > _EXAMPLES else ""
            report.notes.append(f"{file.name}: {len(found)} {what} ({', '.join(found[:_EXAMPLES])}{more})")

    values = {name: [_number(cell) for cell in cells] for name, cells in table.items()}
    labels: dict[str, list[float]] = {}
    for k, column in enumerate(header):
        of_files = [values[name][k] if name in values else None for name in names]
        labels[column] = [math.nan if value is None else value for value in of_files]
    return labels


def _column_names(file: Path, cells: list[str]) -> list[str]:
    width = max((k for k, cell in enumerate(cells, start=1) if cell), default=0)
    names = cells[:width]
    if not names or not all(names) or len(set(names)) < width:
        raise ValueError(f"{file}: the first line must give every column of labels a name of its own")
    return names


def _csv_lines(file: Path) -> list[tuple[int, list[str]]]:
    """Lines that are not empty, with their numbers, cut into fields."""
    try:
        # Decoded as a whole, so that the position in an error is one in the file.
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
    return [(number, row) for number, row in rows if any(row)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_matbench_json(path: str | Path) -> tuple[RawCrystals, ImportReport]:
    """Read a Matbench file: pandas' "split" JSON, plain or compressed by gzip, with pymatgen dictionaries.

    The column ``structure`` holds the crystals; numeric columns are labels under their own names; identifiers are the
    index. A row with another number of values than there are columns is left out.

    Args:
        path: file.

    Returns:
        The crystals in primitive cells, and a report that lists those that could not be used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file or a damaged one, no column of structures, or no usable crystal.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    index, columns, rows = _load_split_json(path)
    if "structure" not in columns:
        raise ValueError(f"{path} has no column 'structure'; its columns are {', '.join(map(repr, columns))}")
    report = ImportReport(str(path))
    whole = [isinstance(row, list) and len(row) == len(columns) for row in rows]
    labels = {}
    for k, column in enumerate(columns):
        if column == "structure":
            continue
        values = [row[k] if good else None for row, good in zip(rows, whole, strict=True)]
        if all(value is None or isinstance(value, int | float) for value in values):
            labels[column] = [_label(value) for value in values]
        else:
            report.notes.append(f"column {column!r} is not numeric and was not read")
    place = columns.index("structure")

    def crystals() -> Iterator[tuple[str, Any]]:
        for number, (name, row, good) in enumerate(zip(index, rows, whole, strict=True), start=1):
            if good:
                yield str(name), row[place]
            else:
                found = f"{len(row)} values" if isinstance(row, list) else type(row).__name__
                fault = f"row {number}: {found} for {len(columns)} columns"
                yield str(name), UnusableCrystalError("row does not fit the columns", fault)

    return collect(crystals(), labels, report), report


def _label(value: float | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:
        # JSON holds whole numbers of any size. Infinite ones are reported and treated as missing later.
        return math.inf


def _load_split_json(path: Path) -> tuple[list[Any], list[str], list[Any]]:
    """Index, names of the columns, and rows."""
    data = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    # What gzip and json raise for a file that is damaged, cut short, no text, or nested without end.
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON: {error}; if it is damaged, fetch or write it anew") from error
    parts: list[Any] = [content.get(key) for key in _SPLIT_KEYS] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) for part in parts):
        what = f"an object with {', '.join(content) or 'nothing'}" if isinstance(content, dict) else "no object"
        raise ValueError(
            f"{path} is no pandas 'split' JSON: expected an object with lists {', '.join(_SPLIT_KEYS)}, found {what}; "
            "write it by DataFrame.to_json(orient='split')"
        )
    index, columns, rows = parts
    if len(index) != len(rows):
        raise ValueError(f"{path}: {len(index)} entries in 'index' for {len(rows)} in 'data'")
    columns = [str(column) for column in columns]
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path} has columns of the same name: {', '.join(columns)}")
    return index, columns, rows
