from __future__ import annotations

import pytest
import torch
from torch import nn

from pyg_dim.constituents import Constituents


def test_parts_are_the_concatenation() -> None:
    x, index, d = torch.randn(3, 4), torch.tensor([2, 0, 0, 1, 2]), torch.rand(5, 1)
    constituents = Constituents((x, index), (d, None))
    assert len(constituents) == 5
    assert constituents.dense().equal(torch.cat([x[index], d], dim=1))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_acts_part_by_part(bias: bool) -> None:
    x, index = torch.randn(3, 4, dtype=torch.float64), torch.tensor([2, 0, 0, 1, 2])
    constituents = Constituents(
        (x, index), (torch.rand(5, 1, dtype=torch.float64), None), (torch.rand(5, 3, dtype=torch.float64), None)
    )
    layer = nn.Linear(8, 6, bias=bias).double()
    torch.testing.assert_close(constituents.linear(layer), layer(constituents.dense()))


def test_detach_cuts_the_gradient() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert not Constituents((x * 2, None)).detach().dense().requires_grad


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least one part"):
        Constituents()
    with pytest.raises(ValueError, match="differ in length"):
        Constituents((torch.zeros(3, 1), None), (torch.zeros(2, 1), None))


def test_cat_is_that_of_the_dense_rows() -> None:
    x, y = torch.randn(3, 2), torch.randn(4, 2)
    e = [torch.randn(n, 1) for n in (5, 6)]
    i, j = torch.randint(3, (5,)), torch.randint(4, (6,))
    for first, second in ((x, y), (x, x)):
        several = [Constituents((first, i), (e[0], None)), Constituents((second, j % second.size(0)), (e[1], None))]
        both = Constituents.cat(several)
        assert both.dense().equal(torch.cat([one.dense() for one in several]))
    assert both.parts[0][0] is x
    assert Constituents.cat(several[:1]) is several[0]
    with pytest.raises(ValueError, match="differ in their parts"):
        Constituents.cat([several[0], Constituents((x, i))])
