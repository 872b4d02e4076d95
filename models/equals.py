"""Rows that are equal by symmetry, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyg_dim.data.keys import CLASS_COUNTS
from pyg_dim.models.batch_norm import Repeats


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
