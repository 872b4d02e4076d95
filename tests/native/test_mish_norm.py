from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyg_dim.native.mish_norm import mish_norm

pytestmark = pytest.mark.usefixtures("kernels")


def made(rows: int, channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = [(rows, channels), (channels,), (channels,)]
    return [torch.randn(shape, dtype=dtype).mul_(3).requires_grad_() for shape in shapes]


def plain(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(F.mish(x), x.shape[1:], scale, offset)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("rows", "channels"), [(0, 16), (1, 16), (7, 48), (33, 128)])
def test_equals_the_plain_formula(rows, channels, dtype, tolerance, close) -> None:
    ours, theirs = made(rows, channels, dtype), []
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    direction = torch.randn(rows, channels, dtype=dtype)
    out, expected = mish_norm(*ours), plain(*theirs)
    close(out, expected, tolerance)
    out.backward(direction)
    expected.backward(direction)
    for a, b in zip(ours, theirs, strict=True):
        close(a.grad, b.grad, tolerance)


def test_any_strides(close) -> None:
    """Of the input, the parameters and the gradient, which lives until the kernel has read it."""
    x = torch.randn(16, 40000, dtype=torch.float64).T.requires_grad_()
    scale, offset = (torch.randn(32, dtype=torch.float64)[::2].requires_grad_() for _ in range(2))
    for direction in (torch.ones((), dtype=torch.float64).expand(40000, 16), torch.randn_like(x)):
        inputs = (x, scale, offset)
        ours = torch.autograd.grad(mish_norm(*inputs), inputs, direction)
        theirs = torch.autograd.grad(plain(*inputs), inputs, direction)
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            close(a, b, 1e-10)
        assert (ours[0] - theirs[0]).abs().max() < 1e-10


@pytest.mark.parametrize("number", [2, 5])
def test_threads(number, with_threads, close) -> None:
    inputs = made(101, 32, torch.float64)
    direction = torch.randn(101, 32, dtype=torch.float64)
    with with_threads(1):
        one = [mish_norm(*inputs), *torch.autograd.grad(mish_norm(*inputs), inputs, direction)]
    with with_threads(number):
        several = [mish_norm(*inputs), *torch.autograd.grad(mish_norm(*inputs), inputs, direction)]
    assert one[0].equal(several[0])
    assert one[1].equal(several[1])
    for a, b in zip(several[2:], one[2:], strict=True):
        close(a, b, 1e-13)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_plausible_number_of_nonsense(value: float) -> None:
    x, scale, offset = made(3, 32, torch.float32)
    with torch.no_grad():
        x[1, 5] = value
    out = mish_norm(x, scale, offset)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()
    assert torch.autograd.grad(out[1].sum(), x)[0][1].isnan().all()


def test_there_is_no_second_derivative() -> None:
    x, scale, offset = made(3, 16, torch.float64)
    (first,) = torch.autograd.grad(mish_norm(x, scale, offset).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_does_not_fit() -> None:
    x, scale, offset = made(3, 16, torch.float64)
    for wrong in ((x[0], scale, offset), (x, scale[:8], offset), (x, scale, offset.float())):
        with pytest.raises(ValueError, match="mish_norm takes"):
            mish_norm(*wrong)
