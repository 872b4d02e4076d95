"""Constituents of sets, held in parts so that the widest tensor of a model need not be built."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyg_dim.rows import gather_rows

Parts = tuple[tuple[Tensor, Tensor | None], ...]


class Constituents:
    """Feature vectors of n constituents, each the concatenation of parts that may be shared.

    A pair is (features of its neighbour, distance): the features exist once a site, the distance once a pair.
    ``Constituents((x, source), (distance, None))`` says just that, and a linear layer over it costs one product a site
    plus one a pair: W [x_j, d] = (W_x x)_j + W_d d.

    Args:
        *parts: (features [m, F], index [n]) gathers rows; (features [n, F], None) takes them as they are.

    Raises:
        ValueError: no part, or parts of different length.
    """

    def __init__(self, *parts: tuple[Tensor, Tensor | None]) -> None:
        if not parts:
            raise ValueError("Constituents needs at least one part")
        # Compared one by one: a set of lengths would make torch.compile take every length for a constant.
        length, *others = ((features if index is None else index).size(0) for features, index in parts)
        if any(other != length for other in others):
            raise ValueError(f"the parts of the constituents differ in length: {[length, *others]}")
        self.parts: Parts = parts

    @classmethod
    def cat(cls, several: Sequence[Constituents]) -> Constituents:
        """The constituents of several sets, one after the other.

        Args:
            several: sets of the same parts; features that all of them share are held once.

        Returns:
            All of them.

        Raises:
            ValueError: sets that differ in their parts or in the widths of these.
        """
        first, *others = several
        if not others:
            return first
        widths = [[features.size(-1) for features, _ in one.parts] for one in several]
        gathered = [[index is not None for _, index in one.parts] for one in several]
        if widths.count(widths[0]) < len(widths) or gathered.count(gathered[0]) < len(gathered):
            raise ValueError(f"sets of constituents differ in their parts: widths {widths}")
        return cls(*(_cat_part(part) for part in zip(*(one.parts for one in several), strict=True)))

    def __len__(self) -> int:
        features, index = self.parts[0]
        return (features if index is None else index).size(0)

    @property
    def channels(self) -> int:
        """Width of a constituent, the sum over its parts."""
        return sum(features.size(-1) for features, _ in self.parts)

    def detach(self) -> Constituents:
        """The same constituents without gradient."""
        return Constituents(*((features.detach(), index) for features, index in self.parts))

    def to(self, dtype: torch.dtype) -> Constituents:
        """The same constituents in numbers of another type."""
        return Constituents(*((features.to(dtype), index) for features, index in self.parts))

    def dense(self) -> Tensor:
        """The [n, F] tensor itself."""
        return torch.cat([f if index is None else f.index_select(0, index) for f, index in self.parts], dim=-1)

    def linear(self, layer: nn.Linear) -> Tensor:
        """A linear layer applied part by part, equal to ``layer(self.dense())``.

        Args:
            layer: linear layer of ``channels`` inputs.

        Returns:
            [n, out] outputs.
        """
        out = None
        for (features, index), weight in zip(
            self.parts, layer.weight.split([f.size(-1) for f, _ in self.parts], dim=1), strict=True
        ):
            # A product over one input is an outer product: elementwise, so that a compiler can fuse it.
            term = features * weight.T if features.size(-1) == 1 else features @ weight.T
            term = term if index is None else gather_rows(term, index)
            out = term if out is None else out + term
        assert out is not None  # noqa: S101 - the constructor asks for a part
        return out if layer.bias is None else out + layer.bias


def _cat_part(part: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    features = [values for values, _ in part]
    rows = [index for _, index in part if index is not None]
    if not rows:
        return torch.cat(features), None
    if all(values is features[0] for values in features):
        return features[0], torch.cat(rows)
    starts = [0, *itertools.accumulate(values.size(0) for values in features)]
    return torch.cat(features), torch.cat([index + start for index, start in zip(rows, starts, strict=False)])
