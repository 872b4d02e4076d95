from __future__ import annotations

import torch
from torch import nn

from pyg_dim import Level, record
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


def test_parts_of_one_tensor_belong_to_the_first_level_that_has_one() -> None:
    shared = nn.Linear(3, 4)
    isolation = Isolation()
    a, b = shared(torch.randn(5, 3)).chunk(2, dim=1)
    (a,), (b, h) = isolation.close(a), isolation.close(b, b * 2)
    assert a.requires_grad
    assert not b.requires_grad
    assert h.requires_grad
    h.sum().backward()
    assert shared.weight.grad is None


def test_what_noise_is_read_from_is_cut_off_too() -> None:
    """The hidden vectors of a level need not lie on the way to its representation."""
    first, second = Level(3, 2), Level(3, 2)
    model = nn.ModuleList([nn.Linear(2, 3), first, second])
    c, index = torch.randn(4, 2), torch.arange(4)
    with record(model, isolate=True) as tape:
        x = model[0](c)
        first(x, constituents=c, index=index)
        second(torch.randn(4, 3), constituents=c, index=index, hidden=x.tanh())
    loss = second.loss(tape.records[1])
    (loss.loss + loss.kl).backward()
    assert model[0].weight.grad is None
    assert second.noise.linear.weight.grad.abs().sum() > 0
