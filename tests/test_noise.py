from __future__ import annotations

import torch

from pyg_dim.noise import ConditionalNoise, LearnedNoise, perturb


def test_learned_noise_is_the_same_for_every_set() -> None:
    noise = LearnedNoise(3)
    with torch.no_grad():
        noise.log_variance.copy_(torch.tensor([0.0, 1.0, 2.0]))
    v = noise(torch.randn(5, 7))
    assert v.shape == (5, 3)
    assert (v == v[0]).all()
    noise.reset_parameters()
    assert (noise.log_variance == 0).all()


def test_conditional_noise_depends_on_the_set() -> None:
    noise = ConditionalNoise(7, 3)
    v = noise(torch.randn(5, 7))
    assert v.shape == (5, 3)
    assert (v.std(0) > 0).all()
    before = noise.linear.weight.clone()
    noise.reset_parameters()
    assert not noise.linear.weight.equal(before)


def test_perturb_has_the_stated_spread() -> None:
    z, v = torch.ones(200_000, 2), torch.tensor([0.0, 2.0])
    noisy = perturb(z, v, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.mean(0), torch.ones(2), atol=0.02, rtol=0)
    torch.testing.assert_close(noisy.std(0), (0.5 * v).exp(), atol=0.02, rtol=0)


def test_perturb_with_given_noise() -> None:
    z, y = torch.zeros(2, 2), torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    torch.testing.assert_close(perturb(z, torch.zeros(2), noise=y), y)
