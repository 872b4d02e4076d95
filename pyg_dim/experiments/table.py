"""A table of fits on disk: one row each, added as they are made, so that a study that was stopped goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pandas as pd

try:
    import fcntl
except ImportError:  # Windows has no such locks: there it has to be one command at a time
    fcntl = None  # type: ignore[assignment]

Key = tuple[str, ...]


class FitTable:
    """Rows of a CSV file that are known by a key.

    Rows are appended, and each call of :meth:`add` reaches the disk before the next fit is begun. A last line that was
    cut short by a crash is taken away when the file is opened; nothing else is ever changed.

    Args:
        path: The file; made with its folder if absent.
        keys: Columns that tell rows apart.
        values: The other columns.

    Raises:
        ValueError: The file has other columns; the message names the file.
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
        rows = self._rows()
        next(rows)
        places = [self.columns.index(key) for key in self.keys]
        self._known = {tuple(row[place] for place in places) for row in rows}

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
        with self.path.open("a", encoding="utf-8", newline="") as file, _alone(file):
            file.write("".join(lines))
            file.flush()
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

    def _rows(self) -> Any:
        return csv.reader(io.StringIO(self.path.read_text(encoding="utf-8")))

    def _mend(self) -> None:
        with self.path.open("r+b") as file, _alone(file):
            contents = file.read()
            whole = contents.rfind(b"\n") + 1
            if whole < len(contents):
                file.truncate(whole)


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
