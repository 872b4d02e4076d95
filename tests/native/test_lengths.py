from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.native.lengths import embed_lengths

pytestmark = pytest.mark.usefixtures("kernels")


def made(lengths: int, pair: int, first: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    shapes = [(pair,), (pair,), (first, pair), (first,)]
    return 8 * torch.rand(lengths, dtype=dtype), [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes]


def plain(length: Tensor, slope: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    features = F.mish(length[:, None] * slope + offset)
    return F.layer_norm(features, slope.shape) @ weight.T + bias


# Tiles are of 48.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize(
    ("lengths", "pair", "first"), [(0, 16, 16), (1, 16, 16), (47, 48, 32), (48, 16, 16), (145, 32, 128)]
)
def test_equals_the_formula_with_every_gradient(lengths, pair, first, dtype, tolerance, close) -> None:
    length, learned = made(lengths, pair, first, dtype)
    out, expected = embed_lengths(length, *learned), plain(length, *learned)
    close(out, expected, tolerance)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, learned, direction)
    for a, b in zip(ours, torch.autograd.grad(expected, learned, direction), strict=True):
        close(a, b, tolerance)


def test_any_strides(close) -> None:
    """Of the arguments and the gradient."""
    length, learned = made(5000, 16, 32, torch.float64)
    strided = [t.detach().unsqueeze(-1).repeat_interleave(2, -1)[..., 0].requires_grad_() for t in learned]
    ours = torch.autograd.grad(embed_lengths(length.repeat_interleave(2)[::2], *strided).sum(), strided)
    for a, b in zip(ours, torch.autograd.grad(plain(length, *learned).sum(), learned), strict=True):
        assert (a - b).abs().max() < 1e-8


@pytest.mark.parametrize("number", [2, 5])
def test_threads(number, with_threads, close) -> None:
    length, learned = made(500, 16, 16, torch.float64)
    found = []
    for threads in (1, number):
        with with_threads(threads):
            out = embed_lengths(length, *learned)
            found.append([out, *torch.autograd.grad(out.square().sum(), learned)])
    assert found[0][0].equal(found[1][0])
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-12)


def test_nan_stays_in_its_row() -> None:
    length, learned = made(100, 16, 16, torch.float32)
    length[50] = float("nan")
    out = embed_lengths(length, *learned)
    assert out[50].isnan().all()
    assert out.isfinite().all(1).sum() == 99


def test_what_does_not_fit() -> None:
    length, learned = made(5, 16, 32, torch.float64)
    for k in range(4):
        for wrong in ([t[1:] if n == k else t for n, t in enumerate(learned)],
                      [t.float() if n == k else t for n, t in enumerate(learned)]):  # fmt: skip
            with pytest.raises(ValueError, match="embed_lengths was given"):
                embed_lengths(length, *wrong)
    with pytest.raises(ValueError, match="gradient"):
        embed_lengths(length.requires_grad_(), *learned)
