"""What an import left out, and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_LOGGER = logging.getLogger(__name__)
_EXAMPLES = 3


def printable(text: str) -> str:
    r"""Text that can be written as UTF-8.

    Args:
        text: any; names of files may hold bytes that are no UTF-8, JSON may hold half of a character.

    Returns:
        The text, with an escape (``\udce9``) in place of each of these.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class LeftOut:
    """One crystal that was left out.

    Args:
        id: its identifier (for a file, the name of the file).
        reason: the kind of fault, the same words for all crystals that have it.
        detail: what is particular to this crystal.
    """

    id: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.id} ({self.detail})" if self.detail else self.id


@dataclass
class NotNumbers:
    """Values of one label that are no number; they are treated as missing.

    Args:
        count: how many.
        examples: the first of them, each with the identifier of its crystal.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, count: int, examples: Iterable[str]) -> None:
        """Count more of them.

        Args:
            count: how many.
            examples: the first of them.
        """
        self.count += count
        self.examples = [*self.examples, *examples][:_EXAMPLES]


@dataclass
class ImportReport:
    """Which crystals of a source were left out and what else the reader had to decide.

    Args:
        source: where the crystals come from.
        num_read: crystals found there, good or bad.
        left_out: the crystals that were left out.
        notes: remarks on the crystals that were kept.
        num_reduced: cells that were reduced to the primitive cell.
        remarks: remark -> identifiers of the crystals that it is about.
        not_numbers: name of a label -> values of it that are no number.
        what: what is read.
    """

    source: str
    num_read: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_reduced: int = 0
    remarks: dict[str, list[str]] = field(default_factory=dict)
    not_numbers: dict[str, NotNumbers] = field(default_factory=dict)
    what: str = "crystals"

    def add(self, other: ImportReport) -> None:
        """Go on with the next part of the source.

        Args:
            other: report of that part.
        """
        self.num_read += other.num_read
        self.left_out += other.left_out
        self.notes += [note for note in other.notes if note not in self.notes]
        self.num_reduced += other.num_reduced
        for remark, ids in other.remarks.items():
            self.remarks.setdefault(remark, []).extend(ids)
        for name, found in other.not_numbers.items():
            self.not_numbers.setdefault(name, NotNumbers()).add(found.count, found.examples)

    @property
    def num_kept(self) -> int:
        """Crystals in the data set."""
        return self.num_read - len(self.left_out)

    def counts(self) -> dict[str, int]:
        """Number of crystals left out for each reason, most frequent first."""
        return dict(Counter(item.reason for item in self.left_out).most_common())

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.num_kept} of {self.num_read} {self.what} kept"]
        for reason, count in self.counts().items():
            items = [str(item) for item in self.left_out if item.reason == reason]
            lines.append(f"  left out, {reason}: {count} ({_some(items, count)})")
        return "\n".join(lines + [f"  {remark}" for remark in self.all_notes()])

    def all_notes(self) -> list[str]:
        """Everything there is to say about the crystals that were kept.

        Returns:
            Sentences.
        """
        reduced = [f"{self.num_reduced} cells reduced to the primitive cell"] if self.num_reduced else []
        remarks = [f"{remark}: {len(ids)} ({_some(ids, len(ids))})" for remark, ids in self.remarks.items()]
        values = [
            f"label {name}: {found.count} values that are no number, treated as missing "
            f"({_some(found.examples, found.count)})"
            for name, found in self.not_numbers.items()
        ]
        return reduced + remarks + values + self.notes

    def log(self) -> None:
        """Log the report: as a warning if crystals were left out, else as information."""
        _LOGGER.log(logging.WARNING if self.left_out else logging.INFO, "%s", self)


def _some(items: list[str], count: int) -> str:
    more = f", and {count - _EXAMPLES} more" if count > _EXAMPLES else ""
    return ", ".join(items[:_EXAMPLES]) + more
