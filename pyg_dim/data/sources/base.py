"""What every source of crystals hands on: entries, one crystal each, cheap to make and to send to another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

MAX_TEXT: Final = 8 * 2**20
"""Bytes; a file, member of an archive, or cell of a table that holds one crystal is not longer."""

ID_COLUMNS: Final = ("immutable_id", "material_id", "id")
"""Columns of identifiers, the first that a table has; without one, rows are numbered."""

Kind = Literal["cif", "poscar", "text", "structure", "fault"]


class Entry(NamedTuple):
    """One crystal, not yet parsed.

    Args:
        id: its identifier.
        kind: what ``content`` is: ``"cif"`` and ``"poscar"``: a path, or the bytes or text of such a file; ``"text"``:
            a CIF or the JSON of a structure dictionary; ``"structure"``: an object that
            :func:`pyg_dim.data.structures.sites_of` takes, or the sites themselves; ``"fault"``: the
            :class:`pyg_dim.data.raw.UnusableCrystalError` that the source met.
        content: see ``kind``.
        labels: name -> value, as it was found: a number, text, or None.
    """

    id: str
    kind: Kind
    content: Any
    labels: Mapping[str, Any]


@dataclass
class Source:
    """Crystals of one origin.

    Args:
        name: how the source is called in reports.
        files: the files that it consists of; they tell whether it has changed.
        entries: gives all entries, in an order that depends on the files alone.
        total: number of entries, where it is known beforehand.
        units: name of a label -> unit; complete once all entries have been seen.
        notes: remarks for the report; complete once all entries have been seen.
        settings: how the source was opened: what entries depend on beside the files.
    """

    name: str
    files: list[Path]
    entries: Callable[[], Iterator[Entry]]
    total: int | None = None
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
