from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.native.pair_rows import pair_rows
from pyg_dim.native.scores import Keys, Way, score_rows

pytestmark = pytest.mark.usefixtures("kernels")
CRYSTALS = [[3, 0, 5, 1], [0], [1], [500, 1, 0, 17, 2, 33], [4, 4], [0, 0]]
GROUPS = sum(map(len, CRYSTALS))
K = 48


def plain(queries, offsets, slope, keys, ways, rows) -> tuple[Tensor, Tensor]:
    """The formula of score_rows, constituent by constituent."""
    group = torch.repeat_interleave(rows.first.diff())
    sums, norms = [], []
    for way in ways:
        one = keys[way.keys]
        hidden = queries.new_zeros(group.numel(), queries.size(1))
        hidden = hidden if one.shared is None else hidden + one.shared[one.index]
        hidden = hidden if one.own is None else hidden + one.own
        hidden = hidden if one.length is None else hidden + one.length[:, None] * slope
        target = way.target[group]
        score = (queries[target] * F.mish(hidden)).sum(1) + offsets[target]
        score = -score if way.belongs else score
        weight = torch.ones_like(score) if way.weight is None else way.weight.to(score.dtype)
        zeros = score.new_zeros(queries.size(0))
        sums.append(zeros.index_add(0, group, weight * torch.logaddexp(score, torch.zeros_like(score))))
        norms.append(zeros.index_add(0, group, weight))
    return torch.stack(sums), torch.stack(norms)


@pytest.fixture
def made(pairs_of):
    def made(dtype: torch.dtype, shared=True, own=True, length=True, width=K):
        source, target = pairs_of(CRYSTALS)
        rows = pair_rows(source, target, GROUPS)
        n = source.numel()

        def one() -> Keys:
            return Keys(
                torch.randn(GROUPS, width, dtype=dtype).requires_grad_() if shared else None,
                rows.source,
                torch.randn(n, width, dtype=dtype).requires_grad_() if own else None,
                torch.rand(n, dtype=dtype) if length else None,
            )

        keys = [one(), one(), one()]
        mask = (torch.rand(n) < 0.5).to(dtype)
        mask[:8] = 0  # no constituent is left of the first groups
        itself = torch.arange(GROUPS)
        ways = [
            Way(0, True, itself, torch.rand(n, dtype=dtype)),
            Way(0, False, itself.roll(3), mask),
            Way(1, False, itself, None),
            Way(1, False, torch.randint(GROUPS, (GROUPS,)), mask.bool()),  # several groups on one
            Way(2, True, torch.zeros_like(itself), torch.rand(n, dtype=dtype)),
        ]
        learned = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in ((GROUPS, width), (GROUPS,), (width,))]
        return learned, keys, ways, rows

    return made


def leaves(learned, keys) -> list[Tensor]:
    return [*learned, *(t for one in keys for t in (one.shared, one.own) if t is not None)]


def gradients(sums: Tensor, direction: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(sums, inputs, direction, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize(("shared", "own", "length"), [*itertools.product((False, True), repeat=3)][1:])
def test_equals_the_formula_with_every_gradient(made, close, shared, own, length, dtype, tolerance) -> None:
    learned, keys, ways, rows = made(dtype, shared, own, length)
    (sums, norms), (expected, weights) = score_rows(*learned, keys, ways, rows), plain(*learned, keys, ways, rows)
    close(sums, expected, tolerance)
    close(norms, weights, tolerance)
    assert not norms.requires_grad
    direction = torch.randn_like(sums)
    inputs = leaves(learned, keys)
    ours = gradients(sums, direction, inputs)
    for a, b in zip(ours, gradients(expected, direction, inputs), strict=True):
        close(a, b, tolerance)


@pytest.mark.parametrize("width", [16, 32, 128])
def test_widths(made, close, width) -> None:
    learned, keys, ways, rows = made(torch.float64, width=width)
    sums, expected = score_rows(*learned, keys, ways, rows)[0], plain(*learned, keys, ways, rows)[0]
    close(sums, expected, 1e-10)
    inputs = leaves(learned, keys)
    for a, b in zip(*(gradients(s, torch.ones_like(s), inputs) for s in (sums, expected)), strict=True):
        close(a, b, 1e-10)


def test_any_strides(made, close) -> None:
    """Of the arguments and the gradient."""
    learned, keys, ways, rows = made(torch.float64)

    def strided(values: Tensor) -> Tensor:
        return values.unsqueeze(-1).repeat_interleave(2, -1)[..., 0]

    other = [Keys(strided(one.shared), strided(one.index), strided(one.own), strided(one.length)) for one in keys]
    others = [
        replace(way, target=strided(way.target), weight=None if way.weight is None else strided(way.weight))
        for way in ways
    ]
    inputs = leaves(learned, keys)
    sums = score_rows(*map(strided, learned), other, others, rows)[0]
    expected = plain(*learned, keys, ways, rows)[0]
    direction = torch.ones((), dtype=torch.float64).expand_as(sums)
    for a, b in zip(*(gradients(s, direction, inputs) for s in (sums, expected)), strict=True):
        close(a, b, 1e-10)


@pytest.mark.parametrize("number", [2, 9])
def test_threads(made, with_threads, close, number) -> None:
    learned, keys, ways, rows = made(torch.float64)
    inputs = leaves(learned, keys)
    found = []
    for threads in (1, number):
        with with_threads(threads):
            sums, norms = score_rows(*learned, keys, ways, rows)
            found.append([sums, norms, *gradients(sums, torch.ones_like(sums), inputs)])
    for k, (a, b) in enumerate(zip(*found, strict=True)):
        close(a, b, 1e-13)
        assert a.equal(b) or k == 4, "all but the slope are sums of a block"


def test_no_group_and_no_constituent() -> None:
    none = torch.empty(0, dtype=torch.long)
    for groups in (0, 3):
        rows = pair_rows(none, none, groups)
        learned = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((groups, K), (groups,), (K,))]
        keys = [Keys(None, none, torch.empty(0, K, dtype=torch.float64), None)]
        sums, norms = score_rows(*learned, keys, [Way(0, True, torch.arange(groups), None)], rows)
        assert sums.equal(torch.zeros(1, groups, dtype=torch.float64))
        assert norms.equal(sums)
        assert all(not g.any() for g in gradients(sums, torch.ones_like(sums), learned))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonsense_stays_in_its_row(made, value) -> None:
    """The numbers of a long row lie where those of the next shorter one are put."""
    learned, keys, _, rows = made(torch.float32)
    lengths = rows.first.diff()
    (long,) = (lengths == 500).nonzero().flatten().tolist()
    with torch.no_grad():
        keys[0].own[rows.first[long] : rows.first[long + 1]] = value
    sums, _ = score_rows(*learned, keys, [Way(0, True, torch.arange(GROUPS), None)], rows)
    others = torch.arange(GROUPS) != long
    assert not sums[0, long].isfinite()
    assert sums[0, others].isfinite().all()
    for gradient in gradients(sums, torch.ones_like(sums), leaves(learned, keys)[:2]):
        assert gradient[others].isfinite().all()


def test_large_scores_do_not_overflow(made, close) -> None:
    learned, keys, ways, rows = made(torch.float32)
    learned = [(1e4 * learned[0].detach()).requires_grad_(), *learned[1:]]
    sums, expected = score_rows(*learned, keys, ways, rows)[0], plain(*learned, keys, ways, rows)[0]
    close(sums, expected, 1e-4)
    inputs = leaves(learned, keys)[:1]
    for a, b in zip(*(gradients(s, torch.ones_like(s), inputs) for s in (sums, expected)), strict=True):
        close(a, b, 1e-3)


def test_there_is_no_second_derivative(made) -> None:
    learned, keys, ways, rows = made(torch.float64)
    (first,) = torch.autograd.grad(
        score_rows(*learned, keys, ways, rows)[0].square().sum(), learned[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_does_not_fit(made) -> None:
    learned, keys, ways, rows = made(torch.float64)
    queries, offsets, slope = learned
    one, way = keys[0], ways[0]
    cases = [
        ((queries[1:], offsets, slope), one, way),
        ((queries, offsets[1:], slope), one, way),
        ((queries, offsets, slope[1:]), one, way),
        ((queries, offsets, slope.float()), one, way),
        (learned, replace(one, shared=one.shared[1:]), way),
        (learned, replace(one, own=one.own[1:]), way),
        (learned, replace(one, own=one.own.float()), way),
        (learned, replace(one, length=one.length[1:]), way),
        (learned, replace(one, length=one.length.clone().requires_grad_()), way),
        (learned, replace(one, index=one.index.flip(0)), way),
        (learned, one, replace(way, weight=way.weight[1:])),
        (learned, one, replace(way, weight=way.weight.clone().requires_grad_())),
        (learned, one, replace(way, target=way.target[1:])),
        (learned, one, replace(way, target=way.target.int())),
        (learned, one, replace(way, target=way.target + 1)),
        (learned, one, replace(way, target=way.target - 1)),
    ]
    for numbers, key, scored in cases:
        with pytest.raises(ValueError, match=r"score_rows|targets|sources"):
            score_rows(*numbers, [key], [scored], rows)
