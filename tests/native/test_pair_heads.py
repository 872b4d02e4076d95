from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.native.pair_heads import gate_pairs, sum_pairs
from pyg_dim.native.pair_rows import PairRows, pair_rows

pytestmark = pytest.mark.usefixtures("kernels")
FORMULAS = [[3, 0, 5, 1], [0], [1], [70, 1, 0, 17, 2, 33], [4, 4], [0, 0]]
HEADS, WIDTH = 3, 48


def hidden(at_target: Tensor, at_source: Tensor, rows: PairRows, heads: int) -> Tensor:
    """[E, heads, C] hidden layers of all pairs."""
    target = torch.repeat_interleave(rows.first.diff())
    return F.leaky_relu(at_target[target] + at_source[rows.source]).unflatten(1, (heads, -1))


def plain_gate(at_target: Tensor, at_source: Tensor, weight: Tensor, rows: PairRows) -> Tensor:
    return (hidden(at_target, at_source, rows, weight.size(0)) * weight).sum(-1)


def plain_sum(at_target: Tensor, at_source: Tensor, share: Tensor, rows: PairRows) -> Tensor:
    target = torch.repeat_interleave(rows.first.diff())
    shared = share[:, :, None] * hidden(at_target, at_source, rows, share.size(1))
    return shared.new_zeros(at_target.size(0), *shared.shape[1:]).index_add(0, target, shared)


KERNELS = {"gate": (gate_pairs, plain_gate), "sum": (sum_pairs, plain_sum)}


@pytest.fixture
def made(pairs_of):
    def made(name: str, dtype: torch.dtype, heads: int = HEADS) -> tuple[list[Tensor], PairRows]:
        rows = pair_rows(*pairs_of(FORMULAS), sum(map(len, FORMULAS)))
        sites, pairs = rows.first.numel() - 1, rows.source.numel()
        shapes = [(sites, heads * WIDTH)] * 2 + [(heads, WIDTH) if name == "gate" else (pairs, heads)]
        return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes], rows

    return made


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_equals_the_formula_with_every_gradient(made, close, with_threads, name, dtype, tolerance, heads, threads):
    inputs, rows = made(name, dtype, heads)
    ours, theirs = KERNELS[name]
    with with_threads(threads):
        out, expected = ours(*inputs, rows), theirs(*inputs, rows)
        close(out, expected, tolerance)
        direction = torch.randn_like(out)
        gradients = torch.autograd.grad(out, inputs, direction)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, inputs, direction), strict=True):
        close(found, wanted, tolerance)


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_contiguous_is_copied(made, close, name) -> None:
    inputs, rows = made(name, torch.float64)
    loose = [values.detach().T.contiguous().T.requires_grad_() for values in inputs]
    ours, theirs = KERNELS[name]
    out = ours(*loose, rows)
    close(out, theirs(*inputs, rows), 1e-10)
    direction = torch.randn(*out.shape[:-1], 2 * out.size(-1), dtype=out.dtype)[..., ::2]
    found = torch.autograd.grad(out, loose, direction)
    for a, b in zip(found, torch.autograd.grad(theirs(*inputs, rows), inputs, direction), strict=True):
        close(a, b, 1e-10)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "change",
    [
        lambda a, b, c: (a[1:], b, c),
        lambda a, b, c: (a, b[:, 16:], c),
        lambda a, b, c: (a, b, c[1:]),
        lambda a, b, c: (a, b.float(), c),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(made, name, change) -> None:
    inputs, rows = made(name, torch.float64, heads=5)
    with pytest.raises(ValueError, match=f"{name}_pairs was given"):
        KERNELS[name][0](*change(*inputs), rows)
