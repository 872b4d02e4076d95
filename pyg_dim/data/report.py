"""What an import left out, and why."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

_LOGGER = logging.getLogger(__name__)
_EXAMPLES = 3


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
class ImportReport:
    """Which crystals of a source were left out and what else the reader had to decide.

    Args:
        source: where the crystals come from.
        num_read: crystals found there, good or bad.
        left_out: the crystals that were left out.
        notes: remarks on the crystals that were kept.
    """

    source: str
    num_read: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_kept(self) -> int:
        """Crystals in the data set."""
        return self.num_read - len(self.left_out)

    def counts(self) -> dict[str, int]:
        """Number of crystals left out for each reason, most frequent first."""
        return dict(Counter(item.reason for item in self.left_out).most_common())

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.num_kept} of {self.num_read} crystals kept"]
        for reason, count in self.counts().items():
            items = [str(item) for item in self.left_out if item.reason == reason]
            more = f", and {count - _EXAMPLES} more" if count > _EXAMPLES else ""
            lines.append(f"  left out, {reason}: {count} ({', '.join(items[:_EXAMPLES])}{more})")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def log(self) -> None:
        """Log the report: as a warning if crystals were left out, else as information."""
        _LOGGER.log(logging.WARNING if self.left_out else logging.INFO, "%s", self)
