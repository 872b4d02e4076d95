from __future__ import annotations

import pytest
import torch
from torch import nn

from pyg_dim.models.layer_norm import LayerNorm


def run(norm: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(gradient)
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad]


@pytest.fixture
def both() -> tuple[nn.LayerNorm, LayerNorm]:
    plain, ours = nn.LayerNorm(8), LayerNorm(8)
    nn.init.uniform_(plain.weight, 0.5, 2)
    nn.init.uniform_(plain.bias, -1, 1)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_usual_one(both, dtype) -> None:
    x, gradient = torch.randn(2, 50, 8, dtype=dtype)
    plain, ours = (run(norm.to(dtype), x, gradient) for norm in both)
    assert all(a.equal(b) for a, b in zip(plain, ours, strict=True))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_many_rows_of_half_precision_leave_the_gradients_whole(both, parameters) -> None:
    plain, ours = both
    x, gradient = torch.randn(20_000, 8), torch.randn(20_000, 8) + 0.5
    expected = run(plain, x, gradient)
    found = run(ours.to(parameters), x.bfloat16(), gradient.bfloat16())
    assert [f.dtype for f in found] == [torch.bfloat16, torch.bfloat16, parameters, parameters]
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < 0.01 * b.norm()
