"""Matbench files: pandas' "split" JSON, read row by row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import Entry, Kind, Source
from pyg_dim.data.sources.labels import require_different, split_unit
from pyg_dim.data.sources.streams import DAMAGE, open_binary

_KEYS: Final = ("index", "columns", "data")
_BLOCK: Final = 2**20
_MAX_VALUE: Final = 64 * 2**20
"""Characters; no row, and no list of identifiers, is longer."""

_SPACE: Final = re.compile(r"[ \t\r\n]*")
STRUCTURE: Final = "structure"
"""The column that holds the crystals."""


def open_split_json(path: Path) -> Source:
    """A Matbench file, plain or compressed: pandas' "split" JSON with pymatgen dictionaries.

    The column ``structure`` holds the crystals; the other columns are labels under their own names; identifiers are
    the index. A row with another number of values than there are columns is left out.

    Args:
        path: file.

    Returns:
        The source.

    Raises:
        ValueError: not such a file or a damaged one, or no column of structures.
    """
    head = _read_head(path)
    names = [split_unit(column) for column in head["columns"]]
    place = head["columns"].index(STRUCTURE)

    def entries() -> Iterator[Entry]:
        count = 0
        for key, row in _items(path):
            if key != "data":
                continue
            identifier = str(head["index"][count]) if count < len(head["index"]) else f"row {count + 1}"
            count += 1
            if not isinstance(row, list) or len(row) != len(names):
                found = f"{len(row)} values" if isinstance(row, list) else type(row).__name__
                fault = UnusableCrystalError(
                    "row does not fit the columns", f"row {count}: {found} for {len(names)} columns"
                )
                yield Entry(identifier, "fault", fault, {})
                continue
            labels = {name: value for k, ((name, _), value) in enumerate(zip(names, row, strict=True)) if k != place}
            kind: Kind = "text" if isinstance(row[place], str) else "structure"
            yield Entry(identifier, kind, row[place], labels)
        if count != len(head["index"]):
            raise ValueError(f"{path}: {len(head['index'])} entries in 'index' for {count} in 'data'")

    require_different(path, [name for k, (name, _) in enumerate(names) if k != place])
    units = {name: unit for name, unit in names if unit}
    return Source(str(path), [path], entries, len(head["index"]), units)


def _read_head(path: Path) -> dict[str, list[Any]]:
    """Index and names of the columns; the rows are not looked at unless they come first."""
    head: dict[str, Any] = {}
    found: list[str] = []
    for key, value in _items(path):
        if key not in found:
            found.append(key)
        if key in ("index", "columns"):
            head[key] = value
        if len(head) == 2 and all(isinstance(part, list) for part in head.values()):
            break
    if len(head) < 2 or not all(isinstance(part, list) for part in head.values()):
        raise ValueError(
            f"{path} is no pandas 'split' JSON: expected an object with lists {', '.join(_KEYS)}, found an object with "
            f"{', '.join(found) or 'nothing'}; write it by DataFrame.to_json(orient='split')"
        )
    head["columns"] = [str(column) for column in head["columns"]]
    if len(set(head["columns"])) < len(head["columns"]):
        raise ValueError(f"{path} has columns of the same name: {', '.join(head['columns'])}")
    if STRUCTURE not in head["columns"]:
        names = ", ".join(map(repr, head["columns"]))
        raise ValueError(f"{path} has no column {STRUCTURE!r}; its columns are {names}")
    return head


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Keys and values of the object in a file; a list under ``data`` item by item."""
    try:
        with open_binary(path) as stream:
            yield from _Scanner(stream).items()
    except _NoObjectError as error:
        raise ValueError(
            f"{path} is no pandas 'split' JSON: expected an object with lists {', '.join(_KEYS)}, found no object; "
            "write it by DataFrame.to_json(orient='split')"
        ) from error
    # What decompression and json raise for a file that is damaged, cut short, no text, or nested without end.
    except (*DAMAGE, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON: {error}; if it is damaged, fetch or write it anew") from error


class _NoObjectError(Exception):
    pass


class _Scanner:
    """Values of a JSON text of any length, of which only the current one is in memory."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._buffer = ""
        self._place = 0
        self._ended = False

    def items(self) -> Iterator[tuple[str, Any]]:
        first = self._peek()
        if first != "{":
            if first:
                self._value()  # damaged, or whole but no object
            else:
                raise json.JSONDecodeError("no text", "", 0)
            raise _NoObjectError
        for _ in self._members("}"):
            key = self._value()
            if not isinstance(key, str):
                raise json.JSONDecodeError("a key that is no text", "", 0)
            self._expect(":")
            if key == "data" and self._peek() == "[":
                for _ in self._members("]"):
                    yield key, self._value()
            else:
                yield key, self._value()
        if self._peek():
            raise json.JSONDecodeError("text after the end", "", 0)

    def _members(self, end: str) -> Iterator[None]:
        """Step into an object or a list, and out of it after its last member."""
        self._peek()
        self._place += 1
        if self._peek() == end:
            self._place += 1
            return
        while True:
            yield
            if self._peek() == end:
                self._place += 1
                return
            self._expect(",")

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise json.JSONDecodeError(f"expected {character!r}", self._buffer[self._place : self._place + 40], 0)
        self._place += 1

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._place)
            self._place = match.end() if match else self._place
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if not self._more(_BLOCK):
                return ""

    def _value(self) -> Any:
        self._peek()
        block = _BLOCK
        while True:
            try:
                value, end = self._json.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError:
                if not self._more(block):
                    raise
            else:
                # A number may go on in what has not been read yet.
                if end < len(self._buffer) or not self._more(block):
                    self._place = end
                    return value
            block *= 2

    def _more(self, size: int) -> bool:
        """Read on; whether there was more."""
        if self._ended:
            return False
        self._buffer = self._buffer[self._place :]
        self._place = 0
        if len(self._buffer) > _MAX_VALUE:
            raise json.JSONDecodeError(f"a value of more than {_MAX_VALUE} characters", "", 0)
        data = self._stream.read(size)
        self._ended = not data
        self._buffer += self._decode.decode(data, final=self._ended)
        return True
