from __future__ import annotations

import pytest
import torch

from pyg_dim.constituents import Constituents
from pyg_dim.critic import CRITICS, BilinearCritic


@pytest.mark.parametrize("name", CRITICS)
def test_folded_path_equals_the_plain_one(name: str) -> None:
    critic = CRITICS[name](6, 5).double()
    z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    x, index = torch.randn(3, 4, dtype=torch.float64), torch.randint(3, (20,))
    constituents = Constituents((x, index), (torch.rand(20, 1, dtype=torch.float64), None))
    target = torch.randint(4, (20,))
    plain = critic(z, constituents, target)
    queries, offsets = critic.queries(z)
    folded = (queries[target] * critic.keys(constituents)).sum(-1) + offsets[target]
    torch.testing.assert_close(folded, plain, rtol=1e-12, atol=1e-12)
    parameters = [z, *critic.parameters()]
    for a, b in zip(
        torch.autograd.grad(folded.square().sum(), parameters),
        torch.autograd.grad(plain.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_bilinear_is_a_form_of_both() -> None:
    critic = BilinearCritic(6, 5)
    z, c = torch.randn(2, 6), torch.randn(3, 5)
    expected = torch.einsum("nd,df,nf->n", z[[0, 1, 1]], critic.form.weight, c)
    torch.testing.assert_close(critic(z, Constituents((c, None)), torch.tensor([0, 1, 1])), expected)


@pytest.mark.parametrize("name", CRITICS)
def test_reset_parameters_draws_every_parameter_anew(name: str) -> None:
    critic = CRITICS[name](6, 5)
    before = {name: p.clone() for name, p in critic.named_parameters()}
    critic.reset_parameters()
    assert all(not p.equal(before[name]) for name, p in critic.named_parameters())
