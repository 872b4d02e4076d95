from __future__ import annotations

import pytest
import torch

from pyg_dim.models.batch_norm import BatchNorm, Repeats


@pytest.mark.parametrize("training", [True, False])
def test_rows_that_stand_for_several_count_so_often(training) -> None:
    """Equal to the rows written out: values, gradients and running statistics."""
    rows, count = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1, 5, 2, 1])
    ends = torch.randn(4, 3, dtype=torch.float64)
    results = []
    for repeats in (Repeats(count, 9), None):
        torch.manual_seed(1)
        norm = BatchNorm(3).double().train(training)
        torch.nn.init.normal_(norm.weight)
        values = rows.clone().requires_grad_()
        if repeats is None:
            out = norm(values.repeat_interleave(count, 0))
            loss = (out * ends.repeat_interleave(count, 0)).sum()
            out = out[count.cumsum(0) - 1]
        else:
            out = norm(values, repeats)
            loss = (out * ends * count[:, None]).sum()
        loss.backward()
        results.append([out, values.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    for short, long in zip(*results, strict=True):
        torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)


def test_one_row_in_all_has_no_statistics() -> None:
    norm = BatchNorm(2)
    before = norm.running_mean.clone()
    assert norm(torch.ones(1, 2), Repeats(torch.tensor([1]), 1)).isfinite().all()
    assert norm.running_mean.equal(before)
    norm(torch.ones(1, 2), Repeats(torch.tensor([4]), 4))
    assert not norm.running_mean.equal(before)


@pytest.mark.parametrize("autocast", [True, False])
def test_statistics_of_half_precision_rows(autocast) -> None:
    """Far from zero, where half precision would lose the spread."""
    rows, repeats = (torch.randn(300, 2) + 100).bfloat16(), Repeats(torch.ones(300, dtype=torch.long), 300)
    ours, plain = BatchNorm(2), BatchNorm(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = ours(rows, repeats)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain(rows.float()), rtol=0.01, atol=0.01)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-4, atol=0)
