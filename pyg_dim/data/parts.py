"""Parts of an import: files beside its result, each written whole by one of several processes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pyg_dim.data.collect import ImportOptions, collect
from pyg_dim.data.parquet import table_of
from pyg_dim.data.replacing import replacing
from pyg_dim.data.report import ImportReport, LeftOut, NotNumbers
from pyg_dim.data.sources.base import Entry

_PLAN: Final = "plan.json"
_MADE: Final = "made"
_REPORT: Final = b"pyg_dim_part"


class Parts:
    """The parts of one import.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, plan: dict[str, Any], resume: bool, discard: bool) -> None:
        """Make the folder, or go on with one that is there.

        Args:
            plan: what the parts follow from: the sources and the options.
            resume: whether to go on with parts that are there.
            discard: whether to start anew although there are some.

        Raises:
            ValueError: there are parts, and nothing was said about them; or those to go on with have another plan, and
                the message says what differs.
        """
        text = json.dumps(plan, sort_keys=True, indent=1)
        known = self.folder / _PLAN
        if not known.exists() and not any(self.folder.glob("part-*.parquet")):
            # Also what is left by one that was killed before its first part, or behind its last.
            self.folder.mkdir(exist_ok=True)
        elif resume:
            # The plan stays: it also tells that all parts are made.
            self._require_same(text)
            return
        elif discard:
            self.remove()
            self.folder.mkdir(exist_ok=True)
        else:
            raise ValueError(
                f"an import that was stopped left its parts in {self.folder}: --resume goes on with them, --overwrite "
                "discards them"
            )
        _write(known, text.encode())

    def _require_same(self, text: str) -> None:
        before, now = self._known_plan(), json.loads(text)
        differs = [key for key in now if before.get(key) != now[key]]
        if differs:
            raise ValueError(
                f"the parts in {self.folder} are of another import ({', '.join(differs)} changed since); --overwrite "
                "instead of --resume discards them"
            )

    def _known_plan(self) -> dict[str, Any]:
        try:
            plan = json.loads((self.folder / _PLAN).read_bytes())
        except (OSError, ValueError):
            return {}
        return plan if isinstance(plan, dict) else {}

    def note_made(self) -> None:
        """Say that all parts are made, and that the file of the import is written from now on."""
        plan = json.loads((self.folder / _PLAN).read_bytes())
        _write(self.folder / _PLAN, json.dumps(plan | {_MADE: True}, sort_keys=True, indent=1).encode())

    def are_made(self) -> bool:
        """Whether an import was stopped when all of its parts had been made."""
        return self._known_plan().get(_MADE) is True

    def path(self, number: int) -> Path:
        """The file of a part.

        Args:
            number: counted from zero.

        Returns:
            Its path.
        """
        return self.folder / f"part-{number:06d}.parquet"

    def is_done(self, number: int) -> bool:
        """Whether a part is there and whole, by its checksum.

        Args:
            number: counted from zero.

        Returns:
            False for a part that has to be made.
        """
        path = self.path(number)
        try:
            return _checksum(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, UnicodeDecodeError):
            return False

    def read(self, number: int) -> tuple[pa.Table, ImportReport]:
        """The crystals of a part, and its report.

        Args:
            number: counted from zero.

        Returns:
            The table and the report.
        """
        return _read(self.path(number))

    def remove(self) -> None:
        """Delete the parts, and the folder if nothing else lies in it."""
        # The plan last: what is left by a removal that was stopped is still known.
        for pattern in ("part-*.parquet", "part-*.sha256", "part-*.tmp", f"{_PLAN}.tmp", _PLAN):
            for file in self.folder.glob(pattern):
                file.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def make_part(entries: list[Entry], options: ImportOptions, path: Path) -> int:
    """Read and check some crystals and write them with their report.

    Args:
        entries: the crystals.
        options: what is done to them.
        path: file to write.

    Returns:
        Number of entries.
    """
    report = ImportReport("")
    _write_part(table_of(collect(entries, options, report)), report, path)
    return len(entries)


def join_parts(pieces: Sequence[Path], path: Path) -> None:
    """Write one part from several.

    Args:
        pieces: files of parts, in order; they stay.
        path: file to write.
    """
    report = ImportReport("")
    tables = []
    for piece in pieces:
        table, found = _read(piece)
        tables.append(table.replace_schema_metadata(None))
        report.add(found)
    # A label that a piece lacks is missing for its crystals.
    _write_part(pa.concat_tables(tables, promote_options="default"), report, path)


def remove_part(path: Path) -> None:
    """Delete a part, if it is there.

    Args:
        path: its file.
    """
    _checksum(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[pa.Table, ImportReport]:
    table = pq.read_table(path)
    return table, _report_from(table.schema.metadata[_REPORT])


def _write_part(table: pa.Table, report: ImportReport, path: Path) -> None:
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({_REPORT: json.dumps(asdict(report))})
    pq.write_table(table, buffer, compression="zstd", compression_level=1)
    _write(path, buffer.getvalue())
    # Last: a part without it is not done.
    _write(_checksum(path), hashlib.sha256(buffer.getvalue()).hexdigest().encode())


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _report_from(text: bytes) -> ImportReport:
    fields = json.loads(text)
    fields["left_out"] = [LeftOut(**item) for item in fields["left_out"]]
    fields["not_numbers"] = {name: NotNumbers(**item) for name, item in fields["not_numbers"].items()}
    return ImportReport(**fields)


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write_bytes(data)
