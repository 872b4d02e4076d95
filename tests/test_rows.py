from __future__ import annotations

import pytest
import torch

from pyg_dim.rows import add_rows, gather_rows


def both(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    gathered = gather_rows(values, index).sin()
    return add_rows(gathered, index.flip(0), 6) * 2


@pytest.mark.parametrize("number", [0, 1, 11])
@pytest.mark.parametrize("width", [(), (3,), (2, 3)], ids=str)
def test_compiled_code_gives_the_same_values_and_gradients(number: int, width: tuple[int, ...]) -> None:
    results = []
    index = torch.randint(5, (number,))
    values = torch.randn(5, *width, dtype=torch.float64)
    weight = torch.randn(6, *width, dtype=torch.float64)
    for run in (both, torch.compile(both, dynamic=True)):
        leaf = values.clone().requires_grad_()
        out = run(leaf, index)
        (out * weight).sum().backward()
        results.append((out.detach(), leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    expected = torch.zeros(6, *width, dtype=torch.float64)
    for row, group in zip(index, index.flip(0), strict=True):
        expected[group] += 2 * values[row].sin()
    torch.testing.assert_close(results[0][0], expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_kernels() -> None:
    index = torch.tensor([3, 0, 3, 1])
    values = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.pyg_dim.gather_rows.default, (values, index))
    torch.library.opcheck(torch.ops.pyg_dim.add_rows.default, (values, index, 5))
    torch.autograd.gradcheck(lambda v: torch.ops.pyg_dim.gather_rows(v, index), (values,))
    torch.autograd.gradcheck(lambda v: torch.ops.pyg_dim.add_rows(v, index, 5), (values,))


def test_one_compilation_serves_all_sizes() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = torch.compile(both, backend=counter, dynamic=True)
    for number in (7, 30, 12, 900):
        run(torch.randn(5, 3, requires_grad=True), torch.randint(5, (number,)))
    assert counter.frame_count == 1
