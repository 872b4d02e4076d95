from __future__ import annotations

import pytest
import torch
from torch_geometric.nn import aggr

from pyg_dim.models.set2set import Set2Set

INDEX = torch.tensor([0, 0, 0, 2, 2, 3])
"""Sets of three, none, two and one member."""


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 5, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_equals_that_of_pyg(x, steps) -> None:
    ours, theirs = Set2Set(5, steps).double(), aggr.Set2Set(5, steps).double()
    theirs.lstm.load_state_dict({f"{name}_l0": value for name, value in ours.lstm.state_dict().items()})
    out = ours(x, INDEX, 4)
    torch.testing.assert_close(out, theirs(x, INDEX, dim_size=4), rtol=1e-12, atol=1e-12)
    assert out.shape == (4, 10)


def test_written_out(x) -> None:
    """Two steps; gates in the order input, forget, cell, output."""
    layer = Set2Set(5, 2).double()
    lstm = layer.lstm
    out = layer(x, INDEX, 4)
    for s, members in enumerate([x[:3], x[:0], x[3:5], x[5:]]):
        q, h, c = torch.zeros(10).double(), torch.zeros(5).double(), torch.zeros(5).double()
        for _ in range(2):
            gates = lstm.weight_ih @ q + lstm.bias_ih + lstm.weight_hh @ h + lstm.bias_hh
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            a = [(member @ h).exp() for member in members]
            q = torch.cat([h, sum((w / sum(a) * m for w, m in zip(a, members, strict=True)), torch.zeros(5).double())])
        torch.testing.assert_close(out[s], q, rtol=1e-12, atol=1e-12)


def test_large_numbers_and_no_members() -> None:
    x = torch.randn(6, 5) * 1e4
    layer = Set2Set(5, 3)
    assert layer(x, INDEX, 4).isfinite().all()
    nothing = layer(x[:0], INDEX[:0], 2)
    assert nothing.isfinite().all()
    assert not nothing[:, 5:].any()


@pytest.mark.parametrize("steps", [1, 3])
def test_one_member_stands_for_many(x, steps) -> None:
    layer, count = Set2Set(5, steps).double(), torch.tensor([1, 4, 2, 3, 1, 7])
    expected = layer(x.repeat_interleave(count, 0), INDEX.repeat_interleave(count), 4)
    torch.testing.assert_close(layer(x, INDEX, 4, count), expected, rtol=1e-12, atol=1e-12)
    assert not layer(x, INDEX, 4).allclose(expected)


def test_gradient(x) -> None:
    layer = Set2Set(5, 2).double()
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, INDEX, 4), x)
