from __future__ import annotations

import torch
from torch import nn

from pyg_dim.isolation import Isolation


def test_gradient_ends_where_an_earlier_level_begins() -> None:
    first, second, shared = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    isolation = Isolation()
    x = first(torch.randn(4, 3))
    z = shared(x.relu())
    isolation.close(z)
    h = second(z.detach()) + x + shared(x)  # around the first level twice, once through a layer of its own
    isolation.close(h)
    h.square().sum().backward(retain_graph=True)
    assert first.weight.grad is None
    assert second.weight.grad.abs().sum() > 0
    assert shared.weight.grad.abs().sum() > 0, "a parameter that both levels use is trained by both"
    z.square().sum().backward()
    assert first.weight.grad.abs().sum() > 0, "the first level is as free as before"


def test_values_of_the_gradient_are_those_of_a_detached_graph() -> None:
    first, second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    isolation = Isolation()
    x = first(inputs)
    z = x.tanh()
    isolation.close(z)
    h = second(z.detach() * x) + x
    isolation.close(h)
    ours = torch.autograd.grad(h.square().sum(), second.parameters())
    x, z = x.detach(), z.detach()
    expected = torch.autograd.grad((second(z * x) + x).square().sum(), second.parameters())
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_graph_there_is_nothing_to_do() -> None:
    isolation = Isolation()
    isolation.close(torch.randn(3), torch.randn(3, requires_grad=True))
    leaf = torch.randn(3, requires_grad=True)
    out = leaf * 2
    isolation.close(out)
    out.sum().backward()
    assert leaf.grad.equal(torch.full((3,), 2.0))
