"""A table of fits on disk: one row each, added as they are made, so that a study that was stopped goes on."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pandas as pd

try:
    import fcntl
except ImportError:  # Windows has no such locks: there it has to be one command at a time
    fcntl = None  # type: ignore[assignment]

Key = tuple[str, ...]
_BLOCK: Final = 2**12
"""Bytes that are looked through at a time for the end of a line."""


class FitTable:
    """Rows of a CSV file that are known by a key.

    Rows are appended, and each call of :meth:`add` reaches the disk before the next fit is begun; where that fails,
    none of its rows stays. A last line that was cut short by a crash is taken away; nothing else is ever changed.

    Args:
        path: The file; made with its folder if absent.
        keys: Columns that tell rows apart.
        values: The other columns.

    Raises:
        ValueError: The file has other columns, or is damaged; the message names the file, and the row.
    """

    def __init__(self, path: str | Path, keys: Sequence[str], values: Sequence[str]) -> None:
        self.path = Path(path)
        self.keys = tuple(keys)
        self.columns = (*keys, *values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = _line(self.columns).encode()
        contents = self.path.read_bytes() if self.path.exists() else b""
        # A header that was cut short is a beginning of this one.
        if contents[: len(header)] != header[: len(contents)]:
            raise ValueError(f"{self.path} is another table than this study writes: move it away, or choose --out")
        if len(contents) < len(header):
            self.path.write_bytes(header)
        self._mend()
        places = [self.columns.index(key) for key in self.keys]
        self._known = {tuple(row[place] for place in places) for row in self._rows()}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return self._key(key) in self._known

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; those whose key is there already are left out, and of several with one key all but the first.

        Args:
            rows: Values by column.
        """
        new: dict[Key, Mapping[str, Any]] = {}
        for row in rows:
            new.setdefault(self._key(row), row)
        new = {key: row for key, row in new.items() if key not in self._known}
        lines = [_line([_text(row[column]) for column in self.columns]) for row in new.values()]
        with self.path.open("r+b", buffering=0) as file, _alone(file):
            # Another command on the same table may have been killed within a line since this one opened it.
            end = _end_of_lines(file)
            file.truncate(end)
            try:
                _append(file, "".join(lines).encode())
            except OSError:
                file.truncate(end)
                raise
        self._known |= new.keys()

    def read(self) -> pd.DataFrame:
        """The rows so far.

        Returns:
            A frame with the columns of the table; empty texts are no missing values.
        """
        frame = pd.read_csv(self.path, keep_default_na=False, na_values={"mae": ["nan"]})
        # Two commands at a time can both make a fit that neither had found.
        return frame.drop_duplicates(list(self.keys), ignore_index=True)

    def _key(self, row: Mapping[str, Any]) -> Key:
        return tuple(_text(row[key]) for key in self.keys)

    def _rows(self) -> list[list[str]]:
        try:
            reader = csv.reader(io.StringIO(self.path.read_text(encoding="utf-8")))
            next(reader)
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path} is damaged ({error}): move it away, or choose --out") from error
        for number, row in enumerate(rows, 2):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.path} is damaged: row {number} has {len(row)} of {len(self.columns)} values; take that row "
                    "out, and it is computed again"
                )
        return rows

    def _mend(self) -> None:
        with self.path.open("r+b", buffering=0) as file, _alone(file):
            file.truncate(_end_of_lines(file))


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    place = file.seek(0, os.SEEK_END)
    while place > 0:
        start = max(0, place - _BLOCK)
        file.seek(start)
        if (found := file.read(place - start).rfind(b"\n")) >= 0:
            return start + found + 1
        place = start
    return 0


def _append(file: IO[bytes], data: bytes) -> None:
    """Write at the end; a disk that is almost full takes a part at first."""
    file.seek(0, os.SEEK_END)
    while data:
        data = data[file.write(data) :]


@contextmanager
def _alone(file: IO[Any]) -> Iterator[None]:
    """Keep other processes from writing to the file, or mending it, meanwhile."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _text(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)
