"""Embeddings in parts: a folder of Parquet files, each written by a process of its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow.parquet as pq

from pyg_dim.data.parquet import readable

if TYPE_CHECKING:
    from typing import Self

EMBEDDED: Final = b"pyg_dim.embeddings"
"""Key, in the metadata of a Parquet file, of what its embeddings were made with."""
SHARD: Final = "shard"
"""Name, among these values, of the one that differs from part to part."""

PLACES: Final = frozenset({"model", "source"})
"""Names of those that tell where files were: on another machine they may lie elsewhere, and be the same."""

_SHARD: Final = re.compile(r"(\d+)/(\d+)")
_PART: Final = "part-*-of-*.parquet"
_EXAMPLES: Final = 3


@dataclass(frozen=True)
class Shard:
    """One of several parts of equal size.

    Attributes:
        number: which one, from 1.
        count: how many there are.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"there is no shard {self}: of {self.count} the first is 1/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"K/N"``.

        Args:
            text: shard K of N, from 1.

        Returns:
            The shard.

        Raises:
            ValueError: another text, or a K that is not among 1 to N.
        """
        found = _SHARD.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no shard: say K/N, such as 1/4 for the first of four")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def file(self) -> str:
        """Name of the file of this part."""
        return f"part-{self.number:05}-of-{self.count:05}.parquet"

    def range(self, length: int) -> range:
        """Its share of things in a row; those of all shards follow each other.

        Args:
            length: how many things there are.

        Returns:
            Numbers of its own ones.
        """
        return range((self.number - 1) * length // self.count, self.number * length // self.count)


def parts_in(folder: Path) -> list[Path]:
    """The parts that a folder holds.

    Args:
        folder: any path.

    Returns:
        Files in their order; none where the path is no folder of parts.
    """
    return sorted(folder.glob(_PART))


def made_with(file: Path) -> dict[str, Any]:
    """What the embeddings of a Parquet file were made with.

    Args:
        file: written by ``pyg-dim embed``.

    Returns:
        Plain values by name; none for files of other programs.

    Raises:
        ValueError: a damaged file.
    """
    with readable(file):
        text = (pq.read_schema(file).metadata or {}).get(EMBEDDED)
    about = None if text is None else json.loads(text)
    return about if isinstance(about, dict) else {}


def require_whole(folder: Path) -> list[Path]:
    """The parts of a folder, if they are all there and belong together.

    Args:
        folder: of ``pyg-dim embed --shard``.

    Returns:
        Files in their order.

    Raises:
        ValueError: no parts, some are missing, a damaged one, or parts of different models or crystals.
    """
    parts = parts_in(folder)
    if not parts:
        raise ValueError(f"the folder {folder} holds no embeddings ({_PART})")
    abouts = [made_with(part) for part in parts]
    shards = [Shard.parse(str(about.pop(SHARD, ""))) for about in abouts]
    for part, about in zip(parts, abouts, strict=True):
        names = (about | abouts[0]).keys() - PLACES
        if differ := sorted(name for name in names if about.get(name) != abouts[0].get(name)):
            raise ValueError(f"{part} and {parts[0]} do not belong together: {', '.join(differ)} differ")
    counts = {shard.count for shard in shards}
    if len(counts) > 1:
        raise ValueError(
            f"{folder} holds shards of {' and of '.join(map(str, sorted(counts)))}: remove those of one kind"
        )
    there = {shard.number for shard in shards}
    (count,) = counts
    if missing := [str(Shard(number, count)) for number in range(1, count + 1) if number not in there]:
        some = ", ".join(missing[:_EXAMPLES])
        raise ValueError(f"{folder} lacks {len(missing)} of its shards ({some}): run pyg-dim embed for them")
    return parts
