from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pyg_dim.losses import JS_BASELINE, crystal_mean, group_mean, info_nce_term, jensen_shannon_term, kl_term


def test_a_critic_that_scores_zero_gives_the_baseline() -> None:
    zero = torch.zeros(4)
    total = jensen_shannon_term(zero, belongs=True) + jensen_shannon_term(zero, belongs=False)
    torch.testing.assert_close(total, torch.full((4,), 2 * math.log(2)))
    assert pytest.approx(1.3863, abs=1e-4) == JS_BASELINE


def test_js_keeps_its_gradient_where_it_is_wrong_and_saturated() -> None:
    score = torch.tensor([-200.0], requires_grad=True)
    jensen_shannon_term(score, belongs=True).sum().backward()
    torch.testing.assert_close(score.grad, torch.tensor([-1.0]))


def test_js_is_the_log_of_the_sigmoid() -> None:
    score = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(jensen_shannon_term(score, belongs=True), -score.sigmoid().log())
    torch.testing.assert_close(jensen_shannon_term(score, belongs=False), -(-score).sigmoid().log())


def test_group_mean_with_weights_masks_and_empty_groups() -> None:
    values, index = torch.tensor([1.0, 3.0, 10.0, 7.0]), torch.tensor([2, 2, 0, 3])
    mean, valid = group_mean(values, index, 5, torch.tensor([3.0, 1.0, 2.0, 0.0]))
    assert valid.tolist() == [True, False, True, False, False]
    torch.testing.assert_close(mean, torch.tensor([10.0, 0.0, 1.5, 0.0, 0.0]))


def test_group_mean_without_weight_is_the_mean() -> None:
    mean, valid = group_mean(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([1, 1, 0]), 2)
    assert valid.all()
    torch.testing.assert_close(mean, torch.tensor([10.0, 2.0]))


def test_masked_values_give_no_gradient_not_even_nan() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    mean, _ = group_mean(values, torch.tensor([0, 1]), 2, torch.tensor([1.0, 0.0]))
    mean.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([1.0, 0.0]))


def test_crystals_count_alike_whatever_their_size() -> None:
    values, crystal = torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([0, 0, 0, 1])
    assert crystal_mean(values, torch.ones(4, dtype=torch.bool), crystal, 2) == 3


def test_crystals_without_a_valid_group_are_left_out() -> None:
    values, crystal = torch.tensor([1.0, 9.0, 5.0]), torch.tensor([0, 0, 1])
    assert crystal_mean(values, torch.tensor([True, False, False]), crystal, 3) == 1


def test_nothing_valid_gives_zero_with_a_zero_gradient() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = crystal_mean(values, torch.zeros(2, dtype=torch.bool), torch.tensor([0, 1]), 2)
    loss.backward()
    assert loss == 0
    assert values.grad.tolist() == [0, 0]


@pytest.mark.parametrize("form", ["log_variance", "paper"])
def test_kl_is_smallest_at_the_unit_normal(form: str) -> None:
    z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    kl_term(z, v, form).sum().backward()
    assert z.grad.abs().max() == 0
    assert v.grad.abs().max() < 1e-15
    for dz, dv in ((0.1, 0), (0, 0.1), (0, -0.1)):
        assert kl_term(z + dz, v + dv, form) > kl_term(z, v, form)


def test_kl_closed_forms() -> None:
    z, sigma = torch.tensor([[2.0]]), 0.5
    v = torch.tensor([[2 * math.log(sigma)]])
    assert kl_term(z, v, "paper").item() == pytest.approx(4 + sigma - math.log(sigma))
    assert kl_term(z, v, "log_variance").item() == pytest.approx(2 + sigma**2 - 2 * math.log(sigma))


def test_unknown_kl_form() -> None:
    with pytest.raises(ValueError, match="log_variance, paper"):
        kl_term(torch.zeros(1, 1), torch.zeros(1), "textbook")


def plain_info_nce(true, index, weight, false, target, false_weight, groups):
    """Cross-entropy of each true score among the false ones of its group, less that of equal scores."""
    means, valid = [], []
    for g in range(groups):
        here = [n for n in range(len(true)) if index[n] == g and weight[n] > 0]
        against = [m for m in range(len(false)) if target[m] == g and false_weight[m] > 0]
        valid.append(bool(here) and bool(against))
        if not valid[-1]:
            means.append(true.new_zeros(()))
            continue
        shares = false_weight[against] / false_weight[against].mean()
        terms = []
        for n in here:
            logits = torch.cat([true[n : n + 1], false[against] + shares.log()])
            terms.append(F.cross_entropy(logits[None], torch.tensor([0])) - math.log(len(logits)))
        w = weight[here]
        means.append((torch.stack(terms) * w).sum() / w.sum())
    return torch.stack(means), torch.tensor(valid)


@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_info_nce_is_cross_entropy_less_that_of_equal_scores(scale: float) -> None:
    true, false = (scale * torch.randn(n, dtype=torch.float64) for n in (9, 14))
    true.requires_grad_()
    false.requires_grad_()
    index, target = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3]), torch.arange(14) % 3
    weight, false_weight = torch.rand(9, dtype=torch.float64), torch.rand(14, dtype=torch.float64)
    weight[0] = 0
    false_weight[::5] = 0
    false_weight[target == 2] = 0  # all masked: group 2 has none, group 3 never had
    arguments = (true, index, weight, false, target, false_weight, 5)
    means, valid = info_nce_term(*arguments)
    expected, there = plain_info_nce(*arguments)
    assert valid.equal(there)
    assert valid.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(means, expected)
    gradients = [torch.autograd.grad(m.sum(), (true, false), retain_graph=True) for m in (means, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_info_nce_of_a_critic_that_knows_nothing_is_zero() -> None:
    """Whatever the number of false samples; without weights all count alike."""
    index, target = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1, 1, 1])
    means, valid = info_nce_term(torch.zeros(3), index, None, torch.zeros(5), target, None, 2)
    torch.testing.assert_close(means, torch.zeros(2))
    assert valid.all()
    better, _ = info_nce_term(torch.ones(3), index, None, -torch.ones(5), target, None, 2)
    assert (better < 0).all()


def test_info_nce_takes_no_notice_of_a_masked_score_however_large() -> None:
    arguments = torch.zeros(1), torch.tensor([0]), None
    false, target, weight = torch.tensor([-1.0, 500.0]), torch.tensor([0, 0]), torch.tensor([1.0, 0.0])
    masked, _ = info_nce_term(*arguments, false, target, weight, 1)
    without, _ = info_nce_term(*arguments, false[:1], target[:1], None, 1)
    torch.testing.assert_close(masked, without)


@pytest.mark.parametrize("form", ["log_variance", "paper"])
def test_kl_terms_of_half_precision_are_computed_in_single(form) -> None:
    z, log_variance = torch.randn(2, 50, 64).bfloat16()
    terms = kl_term(z, log_variance, form)
    assert terms.dtype == torch.float32
    assert terms.equal(kl_term(z.float(), log_variance.float(), form))
