"""Tables of labels beside the structures."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LABEL_FILE: Final = "id_prop.csv"
"""Labels beside CIF files, as in CGCNN: identifier (file name without ending), value."""

_LOGGER = logging.getLogger(__name__)
_EXAMPLES: Final = 3
_UNIT: Final = re.compile(r"(.*\S)\s+[(\[]([^()\[\]]+)[)\]]")


@dataclass
class LabelTable:
    """Labels by identifier.

    Args:
        path: the file.
        rows: identifier -> name of the label -> the text in the file.
        units: name of a label -> unit.
        malformed: lines that are not used, and why.
    """

    path: Path
    rows: dict[str, dict[str, str]]
    units: dict[str, str] = field(default_factory=dict)
    malformed: list[str] = field(default_factory=list)

    def notes(self, without: Sequence[str], used: set[str]) -> list[str]:
        """What did not fit together.

        Args:
            without: identifiers of crystals without a line, in order.
            used: identifiers that have a crystal.

        Returns:
            Remarks for the report.
        """
        unused = [name for name in self.rows if name not in used]
        return [
            f"{self.path.name}: {len(found)} {what} ({', '.join(found[:_EXAMPLES])}{more})"
            for found, what in (
                (self.malformed, "lines not used"),
                (without, "crystals without a line, their labels are missing"),
                (unused, "lines without a crystal"),
            )
            if found
            for more in [", ..." if len(found) > _EXAMPLES else ""]
        ]


def without_ending(name: str) -> str:
    """The identifier that a structure file has.

    Args:
        name: name of the file.

    Returns:
        The name without ``.cif``, ``.vasp`` or ``.poscar``.
    """
    return re.sub(r"(?<=.)\.(cif|vasp|poscar)$", "", name, flags=re.I)


def split_unit(name: str) -> tuple[str, str]:
    """Take the unit out of the name of a column.

    Args:
        name: for example ``"gap (eV)"`` or ``"gap [eV]"``.

    Returns:
        Name and unit, ``("gap", "eV")``; the unit is empty where there is none.
    """
    match = _UNIT.fullmatch(name.strip())
    return (match[1], match[2].strip()) if match else (name.strip(), "")


def ask_for_separator(names: Sequence[str]) -> str:
    """What to ask where the first line of a CSV file has not the columns that it should have.

    Args:
        names: its fields, cut at commas.

    Returns:
        A question with a semicolon in front; empty where commas seem to separate the fields.
    """
    for separator, what in ((";", "semicolons"), ("\t", "tabs")):
        if any(separator in name for name in names):
            return f"; is it separated by {what}? Write commas between fields, and points in numbers"
    return ""


def require_different(path: Path, names: Sequence[str]) -> None:
    """Refuse a file in which two columns of labels have one name, but for their units.

    Args:
        path: file.
        names: names of its labels, without units.

    Raises:
        ValueError: a name comes twice.
    """
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"{path} has columns of the same name, units aside: {', '.join(repeated)}; rename them")


def read_id_prop(path: Path, ids: Sequence[str]) -> LabelTable:
    """Read an ``id_prop.csv``: identifier, value, ... on each line.

    The labels are called ``target`` (``target_2`` ...) unless a first line gives them names. Lines of it with another
    number of fields, or with an identifier that an earlier line has, are not used, with a note.

    Args:
        path: file.
        ids: identifiers of the crystals; a first line that starts with none of them and has no number gives names.

    Returns:
        The labels.

    Raises:
        ValueError: the file cannot be read.
    """
    # Some write the identifier with the ending of the file.
    lines = [(number, [without_ending(name), *cells]) for number, (name, *cells) in _csv_lines(path)]
    if not lines or len(lines[0][1]) < 2:
        asked = ask_for_separator(lines[0][1] if lines else [])
        raise ValueError(f"{path}: expected lines of an identifier and a value, separated by a comma{asked}")
    name, *cells = lines[0][1]
    if name not in set(ids) and all(_is_text(cell) or not cell for cell in cells):
        header = _column_names(path, cells)
        lines = lines[1:]
    else:
        header = ["target", *(f"target_{k}" for k in range(2, len(cells) + 1))]
    return _table(path, header, lines)


def read_labels(path: Path, id_column: str | None = None) -> LabelTable:
    """Read a CSV file of labels whose first line gives the columns their names.

    Args:
        path: file; UTF-8. A column ``gap (eV)`` is the label ``gap`` with the unit eV.
        id_column: name of the column that holds the identifiers; default: the first.

    Returns:
        The labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read, or has no such column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file of labels: {path}")
    lines = _csv_lines(path)
    if not lines or len(lines[0][1]) < 2:
        asked = ask_for_separator(lines[0][1] if lines else [])
        raise ValueError(f"{path}: expected a line with the names of an identifier and at least one label{asked}")
    names = lines[0][1]
    if id_column is not None and id_column not in names:
        raise ValueError(f"{path} has no column {id_column!r}; its columns are {', '.join(map(repr, names))}")
    place = 0 if id_column is None else names.index(id_column)
    header = _column_names(path, names[:place] + names[place + 1 :])
    moved = []
    for number, cells in lines[1:]:
        identifier = without_ending(cells[place]) if place < len(cells) else ""
        moved.append((number, [identifier, *cells[:place], *cells[place + 1 :]]))
    return _table(path, header, moved)


def require_labels(table: LabelTable, id_column: str | None, without: Sequence[str], used: set[str]) -> None:
    """Make sure that a file of labels had some for the crystals; warn of columns without a number.

    Args:
        table: from :func:`read_labels`.
        id_column: the column that was taken for the identifiers; None for the first.
        without: identifiers of crystals without a line, in order.
        used: identifiers that have a crystal.

    Raises:
        ValueError: no line is that of a crystal, or no column of labels has a number.
    """
    if without and not used:
        # Before all else: where the wrong column is taken for the identifiers, these are the labels, and no numbers.
        raise ValueError(_no_match(table.path, id_column, without))
    _tell_of_texts(table)


def _no_match(path: Path, id_column: str | None, ids: Sequence[str]) -> str:
    """What to say where no line is that of a crystal: which column has the identifiers, if one has."""
    lines = _csv_lines(path)
    names, rows = lines[0][1], [cells for _, cells in lines[1:]]
    place = 0 if id_column is None else names.index(id_column)
    wanted, matches = set(ids), {}
    for k, name in enumerate(names):
        found = wanted.intersection(without_ending(cells[k]) for cells in rows if k < len(cells))
        if name and k != place and found:
            matches[name] = len(found)
    said = f"{path}: no line is that of a crystal by its column {names[place]!r}"
    if matches:
        best = max(matches, key=lambda name: matches[name])
        known = len(wanted)
        return (
            f"{said}; column {best!r} matches {matches[best]} of {known} crystals: add --labels-id {shlex.quote(best)}"
        )
    there = ", ".join([cells[place] for cells in rows if place < len(cells)][:_EXAMPLES])
    return f"{said}, which has {there or 'nothing'}; the crystals are called {', '.join(ids[:_EXAMPLES])}"


def _tell_of_texts(table: LabelTable) -> None:
    """Warn of columns without a number, which will be no labels; refuse a file that has no other."""
    rows = list(table.rows.values())
    texts = {name: [row[name] for row in rows if row[name]] for name in (rows[0] if rows else ())}
    without = [name for name, found in texts.items() if not any(_is_number(cell) for cell in found)]
    said = [f"{name!r} ({repr(texts[name][0][:40]) if texts[name] else 'empty'})" for name in without]
    if rows and len(without) == len(texts):
        raise ValueError(
            f"{table.path}: no column of labels has a number: {', '.join(said)}; write numbers with a point, without a "
            "unit"
        )
    if said:
        _LOGGER.warning("%s: no number in %s: no label is read from there", table.path, ", ".join(said))


def _table(path: Path, header: Sequence[str], lines: Iterable[tuple[int, list[str]]]) -> LabelTable:
    pairs = [split_unit(name) for name in header]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the first line must give every column of labels a name of its own")
    table = LabelTable(path, {}, {name: unit for name, unit in pairs if unit})
    for number, (name, *cells) in lines:
        if not name:
            table.malformed.append(f"line {number}: no identifier")
        elif name in table.rows:
            table.malformed.append(f"line {number}: {name} once more")
        elif len(cells) < len(names) or any(cells[len(names) :]):
            table.malformed.append(f"line {number}: {len(cells) + 1} fields, not {len(names) + 1}")
        else:
            table.rows[name] = dict(zip(names, cells, strict=False))
    return table


def _is_text(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return bool(cell)
    return False


def _is_number(cell: str) -> bool:
    """As labels are read: what Python alone takes for a number is none, nor is "nan"."""
    try:
        return "_" not in cell and not math.isnan(float(cell))
    except ValueError:
        return False


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
