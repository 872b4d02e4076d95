"""Rows that are equal by symmetry, computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyg_dim.constituents import Constituents
from pyg_dim.data.keys import CLASS_COUNTS
from pyg_dim.models.batch_norm import Repeats
from pyg_dim.tape import active_tape


class Equals:
    """Rows (sites, edges, angles) and the classes of equal ones that stand for them, where a batch has these.

    Args:
        batch: crystal batch, with classes or without.
        key: key of the classes of the rows.
        rows: number of rows.

    Attributes:
        classes: [rows] class of each row, or None where every row stands for itself.
        member: [n] a row of each class, or None.
        repeats: members of the classes, or None.
    """

    def __init__(self, batch: Any, key: str, rows: int) -> None:
        self.classes: Tensor | None = batch.get(key)
        self.member: Tensor | None = None
        self.repeats: Repeats | None = None
        if self.classes is not None:
            count = batch[CLASS_COUNTS[key]]
            each = torch.arange(rows, device=count.device)
            self.member = torch.zeros_like(count).scatter_reduce(0, self.classes, each, "amin", include_self=False)
            self.repeats = Repeats(count, rows)

    def first(self, values: Tensor) -> Tensor:
        """From [rows, ...] to the values of one member of each class."""
        return values if self.member is None else values.index_select(0, self.member)

    def mean(self, values: Tensor) -> Tensor:
        """From [rows] numbers to the mean of each class: equal ones differ by rounding."""
        if self.classes is None or self.repeats is None:
            return values
        count = self.repeats.count.to(values.dtype)
        return torch.zeros_like(count).index_add(0, self.classes, values) / count

    def spread(self, values: Tensor) -> Tensor:
        """From one value of each class to [rows, ...]."""
        return values if self.classes is None else values.index_select(0, self.classes)

    def number(self, rows: Tensor) -> Tensor:
        """From numbers of rows to those of their classes."""
        return rows if self.classes is None else self.classes.index_select(0, rows)

    def through(
        self, level: Callable[..., Tensor], values: Tensor, constituents: Constituents, index: Tensor
    ) -> Tensor:
        """From one value of each class to what a level, which is given all rows, hands on of it.

        Args:
            level: level of the rows.
            values: [n, ...] one value of each class.
            constituents: those of all rows.
            index: row of each constituent.

        Returns:
            [n, ...].
        """
        if self.classes is not None and active_tape() is None:
            return values  # as a level would hand it on; to spread edges takes time
        return self.first(level(self.spread(values), constituents=constituents, index=index))
