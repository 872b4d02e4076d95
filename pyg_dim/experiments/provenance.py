"""What the tables of a folder were computed from, so that others are not added to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyg_dim.evaluate.formatting import replace_file

TOGETHER: Final = "crystals, labels and parts"
"""One checksum of all three, which the first versions kept alone."""


def keep_to(path: Path, settings: Mapping[str, Any], checksums: Mapping[str, str] | None = None) -> None:
    """Write down what a study depends on, or make sure that it is still the same.

    Args:
        path: JSON file beside the tables.
        settings: Plain values by name; those that an earlier call did not have are added.
        checksums: Of what is no plain value, by what it is, such as "crystals": a message tells which differ, not the
            values. That of :data:`TOGETHER` is told only where no other differs.

    Raises:
        ValueError: A value differs from that of the file, or the file is damaged; the message says what to do.
    """
    mine, sums = json.loads(json.dumps(settings)), dict(checksums or {})
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        known = error
    if not isinstance(known, dict):
        raise ValueError(f"{path} is damaged, so nobody knows what the tables beside it are of: choose another --out")
    for name, value in mine.items():
        if known.get(name, value) != value:
            raise ValueError(
                f"{path} tells of a study with {name} {json.dumps(known[name])}, this one has {json.dumps(value)}: "
                "rows of both would stand in one table; choose another --out"
            )
    if differing := [name for name, value in sums.items() if known.get(name, value) != value]:
        if len(differing) > 1 and TOGETHER in differing:
            differing.remove(TOGETHER)
        raise ValueError(
            f"{path} tells of a study that differs in {' and '.join(differing)}: rows of both would stand in one "
            "table; choose another --out"
        )
    mine |= sums
    if mine.keys() - known.keys():
        replace_file(path, json.dumps(known | mine, indent=1) + "\n")


def checksum(path: Path) -> str:
    """The SHA-256 of a file, its first 16 digits.

    Args:
        path: The file.

    Returns:
        Hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
