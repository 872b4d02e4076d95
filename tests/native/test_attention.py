from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.native.attention import attend
from pyg_dim.native.pair_rows import PairRows, pair_rows

pytestmark = pytest.mark.usefixtures("kernels")
CRYSTALS = [[3, 0, 5, 1], [0], [1], [500, 1, 0, 17, 2, 33], [4, 4], [0, 0]]
A, B, V = 16, 32, 48


def plain(
    at_target: Tensor, at_source: Tensor, at_pair: Tensor, logits: Tensor, weight: Tensor, bias: Tensor,
    rows: PairRows, count: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The formula of attend, row by row."""
    out = []
    for i in range(at_target.size(0)):
        row = slice(int(rows.first[i]), int(rows.first[i + 1]))
        if row.start == row.stop:
            out.append(bias.new_zeros(logits.size(0) * bias.numel()))
            continue
        first = F.mish(at_target[i] + at_source[rows.source[row]] + at_pair[rows.place[row].long()])
        a, b = first.split([logits.size(1), weight.size(1)], dim=1)
        logit = F.layer_norm(a, a.shape[1:]) @ logits.T
        logit = logit if count is None else logit + count[row].log()[:, None]
        value = F.mish(F.layer_norm(b, b.shape[1:]) @ weight.T + bias)
        out.append((logit.softmax(0).T @ F.layer_norm(value, value.shape[1:])).flatten())
    return torch.stack(out)


@pytest.fixture
def made(pairs_of):
    def made(heads: int, dtype: torch.dtype, widths=(A, B, V)):
        source, target = pairs_of(CRYSTALS)
        sites = sum(map(len, CRYSTALS))
        rows = pair_rows(source, target, sites, torch.randint(7, source.shape).to(dtype))
        a, b, v = widths
        shapes = [(sites, a + b), (sites, a + b), (rows.member.numel(), a + b), (heads, a), (v, b), (v,)]
        return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes], rows

    return made


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_equals_the_formula_with_every_gradient(made, close, heads, dtype, tolerance, counted) -> None:
    inputs, rows = made(heads, dtype)
    assert 0 < rows.member.numel() < rows.source.numel()
    count = torch.randint(1, 5, rows.source.shape).to(dtype) if counted else None
    out, expected = attend(*inputs, rows, count), plain(*inputs, rows, count)
    close(out, expected, tolerance)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, inputs, direction)
    theirs = torch.autograd.grad(expected, inputs, direction)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, tolerance)


@pytest.mark.parametrize("widths", [(16, 16, 16), (128, 48, 32)], ids=str)
def test_widths(made, close, widths) -> None:
    inputs, rows = made(1, torch.float64, widths)
    out, expected = attend(*inputs, rows), plain(*inputs, rows)
    close(out, expected, 1e-10)
    ours = torch.autograd.grad(out.square().sum(), inputs)
    for a, b in zip(ours, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
        close(a, b, 1e-10)


def test_any_strides(made, close) -> None:
    """Of the arguments and the gradient."""
    inputs, rows = made(2, torch.float64)
    strided = [t.detach().unsqueeze(-1).repeat_interleave(2, -1)[..., 0].requires_grad_() for t in inputs]
    strided[4] = inputs[4].detach().T.contiguous().T.requires_grad_()
    count = torch.ones(rows.source.numel(), 2, dtype=torch.float64)[:, 0]
    ours = torch.autograd.grad(attend(*strided, rows, count).sum(), strided)
    for a, b in zip(ours, torch.autograd.grad(plain(*inputs, rows).sum(), inputs), strict=True):
        assert (a - b).abs().max() < 1e-9


def test_only_what_needs_a_gradient_gets_one(made) -> None:
    inputs, rows = made(1, torch.float64)
    inputs = [t.requires_grad_(k == 3) for k, t in enumerate(inputs)]
    attend(*inputs, rows).sum().backward()
    assert [t.grad is not None for t in inputs] == [k == 3 for k in range(6)]
    with torch.no_grad():
        assert not attend(*inputs, rows).requires_grad


@pytest.mark.parametrize("number", [2, 9])
def test_threads(made, with_threads, close, number) -> None:
    inputs, rows = made(2, torch.float64)
    found = []
    for threads in (1, number):
        with with_threads(threads):
            out = attend(*inputs, rows)
            found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for a, b in zip(found[0][:4], found[1][:4], strict=True):
        assert a.equal(b)
    for a, b in zip(found[0][4:], found[1][4:], strict=True):
        close(a, b, 1e-12)


def test_no_site_and_no_pair() -> None:
    none = torch.empty(0, dtype=torch.long)
    for sites in (0, 3):
        rows = pair_rows(none, none, sites, torch.empty(0, dtype=torch.float64))
        shapes = [(sites, A + B), (sites, A + B), (0, A + B), (2, A), (V, B), (V,)]
        inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
        out = attend(*inputs, rows)
        assert out.equal(torch.zeros(sites, 2 * V, dtype=torch.float64))
        assert all(not g.any() for g in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonsense_stays_in_its_rows(made, value) -> None:
    inputs, rows = made(1, torch.float32)
    with torch.no_grad():
        inputs[0][0, 3] = value
    out = attend(*inputs, rows)
    assert out[0].isnan().all()
    assert out[1:].isfinite().all()
    assert torch.autograd.grad(out[0].sum(), inputs[0])[0][0].isnan().any()


def test_there_is_no_second_derivative(made) -> None:
    inputs, rows = made(1, torch.float64)
    (first,) = torch.autograd.grad(attend(*inputs, rows).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_does_not_fit(made) -> None:
    inputs, rows = made(1, torch.float64)
    for k in range(6):
        short = [t[..., 1:] if n == k else t for n, t in enumerate(inputs)]
        other = [t.float() if n == k else t for n, t in enumerate(inputs)]
        for wrong in (short, other):
            with pytest.raises(ValueError, match="attend was given"):
                attend(*wrong, rows)
    bare = pair_rows(rows.source, torch.repeat_interleave(rows.first.diff()), rows.first.numel() - 1)
    with pytest.raises(ValueError, match="lengths"):
        attend(*inputs[:2], inputs[2][:0], *inputs[3:], bare)
    ones = torch.ones(rows.source.numel(), dtype=torch.float64)
    for count in (ones[1:], ones.float(), ones.clone().requires_grad_()):
        with pytest.raises(ValueError, match="count"):
            attend(*inputs, rows, count)
