"""Formats that ASE reads: extended XYZ and ase.db."""

from __future__ import annotations

import io
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import ID_COLUMNS, MAX_TEXT, Entry, Source
from pyg_dim.data.sources.streams import DAMAGE, open_binary

_MAX_ATOMS: Final = 100_000
_TOO_WIDE: Final = re.compile(r"propert\S*?=\S*:\d{4}", re.I)
_MAX_JSON_DB: Final = 256 * 2**20
_COLUMNS: Final = ("id", "numbers", "positions", "cell", "pbc", "energy", "key_value_pairs")


def open_extxyz(path: Path, wanted_id: str | None = None) -> Source:
    """An extended XYZ file, plain or compressed, with one crystal for each frame.

    Numbers in the comment line are labels, and so is an energy. The identifier is the value of ``immutable_id``,
    ``material_id`` or ``id`` there; without one, the name of the file and the number of the frame.

    Args:
        path: file.
        wanted_id: another key of the identifier.

    Returns:
        The source.
    """

    def entries() -> Iterator[Entry]:
        for number, frame in enumerate(_frames(path)):
            name = f"{path.name.split('.')[0]}-{number}"
            if isinstance(frame, UnusableCrystalError):
                yield Entry(name, "fault", frame, {})
                continue
            atoms = _read_frame(frame)
            if isinstance(atoms, UnusableCrystalError):
                yield Entry(name, "fault", atoms, {})
                continue
            info = dict(atoms.info)
            if atoms.calc is not None:
                info = {key: value for key, value in atoms.calc.results.items() if np.ndim(value) == 0} | info
            yield _entry(name, atoms, info, wanted_id)

    return Source(str(path), [path], entries)


def _entry(default: str, crystal: Any, info: Mapping[str, Any], wanted_id: str | None) -> Entry:
    key = next((key for key in ((wanted_id,) if wanted_id else ID_COLUMNS) if key in info), None)
    labels = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in info.items()
        if name != key and isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating)
    }
    return Entry(default if key is None else str(info[key]), "structure", crystal, labels)


def _frames(path: Path) -> Iterator[str | UnusableCrystalError]:
    """The text of each frame; at damage, what is wrong, and the end."""
    try:
        with open_binary(path) as stream:
            while first := stream.readline(MAX_TEXT):
                if not first.strip():
                    continue
                count = int(first) if first.strip().isdigit() and len(first) < 20 else -1
                if not 0 <= count <= _MAX_ATOMS:
                    shown = first[:40].decode("utf-8", "replace").strip()
                    yield UnusableCrystalError("file damaged from here on", f"not a number of atoms: {shown}")
                    return
                lines = [first]
                size = 0
                for _ in range(count + 1):
                    lines.append(stream.readline(MAX_TEXT))
                    size += len(lines[-1])
                    if not lines[-1] or size > MAX_TEXT:
                        break
                if not lines[-1] or size > MAX_TEXT:
                    what = "the file ends within a frame" if not lines[-1] else f"a frame of more than {MAX_TEXT} bytes"
                    yield UnusableCrystalError("file damaged from here on", what)
                    return
                yield b"".join(lines).decode("utf-8", errors="replace")
    except (*DAMAGE, ValueError) as error:
        yield UnusableCrystalError("file damaged from here on", f"{error}"[:200])


def _read_frame(text: str) -> Any:
    from ase.io.extxyz import read_extxyz

    # Room for so many numbers would be made before they are looked for.
    if _TOO_WIDE.search(text.split("\n", 2)[1]):
        return UnusableCrystalError("unreadable frame", "Properties with a column of thousands of numbers")
    try:
        return next(iter(read_extxyz(io.StringIO(text), 0)))
    # A parser fed with a broken file raises whatever its code runs into; the frame is reported, the others go on.
    except Exception as error:
        return UnusableCrystalError("unreadable frame", f"{type(error).__name__}: {error}"[:200])


def is_ase_json(path: Path) -> bool:
    """Whether a JSON file is a data base of ASE: an object whose first key is a number.

    Args:
        path: file.

    Returns:
        True if it looks like one.
    """
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"\d+"\s*:', file.read(200)) is not None


def open_ase_db(path: Path, wanted_id: str | None = None) -> Source:
    """A data base of ASE: an SQLite file (``.db``) or a JSON file; numbers among the key-value pairs, and the energy.

    Of each entry only the numbers, positions, cell, period, energy and key-value pairs are asked for; none of them is
    more than numbers and text, and nothing is unpickled.

    Args:
        path: file.
        wanted_id: key of the identifier; default: ``immutable_id`` or ``material_id``, else the number of the entry.

    Returns:
        The source.

    Raises:
        ValueError: no such data base, or a damaged one.
    """
    kind = "json" if path.suffix == ".json" else "db"
    _require_ase_db(path, kind)

    def entries() -> Iterator[Entry]:
        from ase import Atoms
        from ase.db import connect

        try:
            rows = connect(path, type=kind, use_lock_file=False).select(include_data=False, columns=list(_COLUMNS))
            for row in rows:
                try:
                    crystal: Any = Atoms(row.numbers, positions=row.positions, cell=row.cell, pbc=row.pbc)
                except (ValueError, TypeError) as error:
                    yield Entry(str(row.id), "fault", UnusableCrystalError("unreadable entry", f"{error}"[:200]), {})
                    continue
                info = dict(row.key_value_pairs)
                if row.get("energy") is not None:
                    info.setdefault("energy", row.energy)
                yield _entry(str(row.id), crystal, info, wanted_id)
        # What ASE and SQLite raise for rows that hold other things than they should.
        except (sqlite3.Error, OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            fault = UnusableCrystalError("data base damaged from here on", f"{type(error).__name__}: {error}"[:200])
            yield Entry(str(path), "fault", fault, {})

    return Source(str(path), [path], entries)


def _require_ase_db(path: Path, kind: str) -> None:
    if kind == "json":
        # ASE decodes the whole file at once.
        if path.stat().st_size > _MAX_JSON_DB:
            raise ValueError(f"{path}: a JSON data base of more than {_MAX_JSON_DB} bytes; convert it to .db by ase db")
        return
    try:
        # Opened for reading alone: ASE would make its tables in a file that lacks them.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ValueError(f"{path} is no readable data base of ASE: {error}") from error
    if not {"systems", "information"} <= tables:
        raise ValueError(f"{path} is no data base of ASE: its tables are {', '.join(sorted(tables)) or 'none'}")
