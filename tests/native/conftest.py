"""Pairs in rows of every length, and tensors to compare the kernels' numbers with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pyg_dim import native


@pytest.fixture(scope="session")
def kernels() -> None:
    """Skips what needs the kernels where they cannot be built."""
    if (reason := native.fault()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def pairs_of() -> Callable[..., tuple[Tensor, Tensor]]:
    """``pairs_of([[3, 0], [5]])``: (source, target) of crystals of sites with so many pairs, within each crystal."""

    def pairs_of(crystals: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([count for crystal in crystals for count in crystal])
        target = torch.repeat_interleave(counts)
        first = torch.cat([torch.full((len(c),), sum(map(len, crystals[:k]))) for k, c in enumerate(crystals)])
        size = torch.cat([torch.full((len(c),), len(c)) for c in crystals])
        source = first[target] + (torch.rand(target.numel()) * size[target]).long()
        return source, target

    return pairs_of


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """``close(ours, plain, tolerance)``: the largest error is that share of the largest number, at most."""

    def close(ours: Tensor | None, plain: Tensor | None, tolerance: float) -> None:
        assert ours is not None
        assert plain is not None
        assert ours.shape == plain.shape
        if plain.numel():
            assert ((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-12)).item() <= tolerance

    return close


@pytest.fixture(scope="session")
def with_threads() -> Callable[..., object]:
    """``with with_threads(2):`` that many threads."""

    @contextmanager
    def with_threads(number: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return with_threads
