from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch

from pyg_dim import Level, record
from pyg_dim.constituents import Constituents
from pyg_dim.critic import DotProductCritic
from pyg_dim.false_samples.other import other_targets
from pyg_dim.losses import info_nce_term, jensen_shannon_term
from pyg_dim.scoring import score_terms
from pyg_dim.tape import FalseSample


def recorded(level: Level, groups: int = 4, n: int = 12, **options):
    z = torch.randn(groups, 3, dtype=torch.float64, requires_grad=True)
    index = torch.arange(n) % groups
    with record(level) as tape:
        level(z, constituents=torch.randn(n, 2, dtype=torch.float64), index=index, **options)
    return tape.records[0]


def plain_loss(level: Level, record_, false) -> torch.Tensor:
    """Eq. 6, group by group and constituent by constituent."""
    groups = []
    for g in range(record_.z.size(0)):

        def mean(constituents, target, weight, belongs, g=g):
            scores = level.critic(record_.z, constituents, target)
            here = [n for n in range(len(constituents)) if target[n] == g and (weight is None or weight[n] > 0)]
            if not here:
                return None
            w = [1.0 if weight is None else weight[n] for n in here]
            terms = [jensen_shannon_term(scores[n], belongs=belongs) for n in here]
            return sum(a * b for a, b in zip(w, terms, strict=True)) / sum(w)

        true = mean(record_.constituents, record_.index, record_.weight, True)
        kinds = [m for f in false if (m := mean(f.constituents, f.target, f.weight, False)) is not None]
        if true is not None and kinds:
            groups.append(true + sum(kinds) / len(kinds))
    return sum(groups) / len(groups)


def test_loss_is_eq_6_written_out() -> None:
    level = Level(3, 2, noise="none").double()
    r = recorded(level, weight=torch.rand(12, dtype=torch.float64))
    shared = Constituents((torch.randn(12, 2, dtype=torch.float64), None))
    five = Constituents((torch.randn(5, 2, dtype=torch.float64), None))
    mask = torch.ones(12, dtype=torch.float64)
    mask[::4] = 0  # group 0 has no sample of this kind
    false = [
        FalseSample("a", shared, r.index, mask),
        FalseSample("b", shared, torch.randint(4, (12,)), torch.rand(12, dtype=torch.float64)),
        FalseSample("c", five, torch.tensor([1, 1, 2, 2, 2]), None),
    ]
    loss = level.loss(r, false, kinds=())
    torch.testing.assert_close(loss.loss, plain_loss(level, r, false))
    assert loss.coverage["a"] == 0.75
    assert loss.coverage["c"] == 0.5


def test_a_group_without_constituents_or_without_false_samples_is_left_out() -> None:
    level = Level(3, 2, noise="none").double()
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    c = torch.randn(6, 2, dtype=torch.float64)
    with record(level) as tape:
        level(z, constituents=c, index=torch.tensor([0, 0, 1, 1, 2, 2]))
    r = tape.records[0]
    false = [FalseSample("a", r.constituents, torch.tensor([0, 0, 1, 1, 3, 3]), None)]
    loss = level.loss(r, false, kinds=())
    torch.testing.assert_close(loss.loss, plain_loss(level, r, false))
    loss.loss.backward()
    assert z.grad[2].abs().max() == 0
    assert z.grad[3].abs().max() == 0


def test_nothing_false_at_all_gives_no_loss() -> None:
    level = Level(3, 2).double()
    loss = level.loss(recorded(level), kinds=())
    assert loss.loss == 0


def test_other_keeps_the_weights_of_the_constituents(generator) -> None:
    level = Level(3, 2, noise="none").double()
    r = recorded(level, weight=torch.rand(12, dtype=torch.float64))
    target, _ = other_targets(4, None, device=r.z.device, generator=torch.Generator().manual_seed(0))
    loss = level.loss(r, generator=generator)
    by_hand = [FalseSample("other", r.constituents, target[r.index], r.weight)]
    torch.testing.assert_close(loss.loss, plain_loss(level, r, by_hand))


def test_noise_has_the_variance_of_its_log() -> None:
    level = Level(3, 2).double()
    r = recorded(level)
    y = torch.randn(4, 3, dtype=torch.float64)
    noisy = r.z + y * (0.5 * level.noise(r.hidden)).exp()
    still = dataclasses.replace(r, z=noisy, training=False)
    same = [level.loss(x, generator=torch.Generator().manual_seed(0), noise=y).loss for x in (r, still)]
    torch.testing.assert_close(*same)


def test_noise_only_in_training() -> None:
    level = Level(3, 2).double()
    scored = {}
    for training in (True, False):
        level.train(training)
        torch.manual_seed(1)
        r = recorded(level)
        scored[training] = [level.loss(r, generator=torch.Generator().manual_seed(s)).terms["true"] for s in (1, 2)]
    assert scored[True][0] != scored[True][1]
    assert scored[False][0] == scored[False][1]


@pytest.mark.parametrize("noise", ["conditional", "learned", "none"])
@pytest.mark.parametrize("kl", ["log_variance", "paper"])
def test_every_noise_and_kl_trains_all_its_parameters(noise: str, kl: str) -> None:
    level = Level(3, 2, noise=noise, kl=kl).double()
    loss = level.loss(recorded(level))
    (loss.loss + (loss.kl if loss.kl is not None else 0)).backward()
    assert (loss.kl is None) == (noise == "none")
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in level.named_parameters())


def test_deepcopy_and_state_dict(generator) -> None:
    level = Level(3, 2).double().eval()
    twin = copy.deepcopy(level)
    twin.load_state_dict(level.state_dict())
    torch.manual_seed(3)
    a = recorded(level)
    torch.manual_seed(3)
    b = recorded(twin)
    kept = [lev.loss(r, generator=torch.Generator().manual_seed(0)).loss for lev, r in ((level, a), (twin, b))]
    torch.testing.assert_close(*kept)


def test_compiled_scoring_equals_eager() -> None:
    level = Level(3, 2, noise="none").double()
    r = recorded(level)
    generator = torch.Generator()
    eager = level.loss(r, generator=generator.manual_seed(0)).loss
    level.compiled = True
    compiled = level.loss(r, generator=generator.manual_seed(0)).loss
    torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("critic", ["dot_product", "bilinear"])
def test_rows_that_are_gathered_several_times_score_like_those_written_out(critic: str) -> None:
    level = Level(3, 2, noise="none", critic=critic).double()
    z, rows = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    gather, target = torch.randint(5, (12,)), torch.randint(4, (12,))
    ways = [(True, target, None), (False, target.flip(0), None)]
    a = score_terms(level.critic, z, [(((rows, gather),), ways)])
    b = score_terms(level.critic, z, [(((rows[gather], None),), ways)])
    for (mean, valid), (expected, also) in zip(a, b, strict=True):
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)
        assert valid.equal(also)


def test_half_precision_sums_in_float32() -> None:
    level = Level(3, 2, noise="none").bfloat16()
    z = torch.randn(2, 3, dtype=torch.bfloat16)
    parts = Constituents((torch.randn(4, 2, dtype=torch.bfloat16), None)).parts
    ((mean, _),) = score_terms(level.critic, z, [(parts, [(True, torch.tensor([0, 0, 1, 1]), None)])])
    assert mean.dtype == torch.float32


def test_unknown_forms() -> None:
    with pytest.raises(ValueError, match="conditional, learned, none"):
        Level(3, 2, noise="gaussian")
    with pytest.raises(ValueError, match="log_variance, paper"):
        Level(3, 2, kl="textbook")
    with pytest.raises(ValueError, match="jensen_shannon, info_nce"):
        Level(3, 2, estimator="wasserstein")
    with pytest.raises(ValueError, match="dot_product, bilinear, or a class of your own"):
        Level(3, 2, critic="cosine")
    with pytest.raises(ValueError, match="or -1"):
        Level(0, 2)
    with pytest.raises(ValueError, match="the objective makes them"):
        Level(3, 2).double().loss(recorded(Level(3, 2).double()), kinds=("other", "composition"))


def test_info_nce_takes_each_kind_by_itself() -> None:
    level = Level(3, 2, noise="none", estimator="info_nce").double()
    r = recorded(level)
    mask = torch.ones(12, dtype=torch.float64)
    mask[::4] = 0  # group 0 has no sample of this kind
    target = torch.randint(4, (12,))
    target[:4] = torch.arange(4)  # every group has one of the other
    false = [FalseSample("a", r.constituents, r.index, mask), FalseSample("b", r.constituents, target, None)]
    loss = level.loss(r, false, kinds=())
    scores = level.critic(r.z, r.constituents, r.index)
    terms = [
        info_nce_term(scores, r.index, None, level.critic(r.z, f.constituents, f.target), f.target, f.weight, 4)
        for f in false
    ]
    kinds = torch.stack([valid for _, valid in terms]).sum(0)
    assert kinds.tolist() == [1, 2, 2, 2]
    torch.testing.assert_close(loss.loss, (sum(term for term, _ in terms) / kinds).mean())
    assert set(loss.terms) == {"a", "b"}
    assert loss.coverage["a"] == 0.75


def test_info_nce_without_any_false_sample_is_zero_with_a_zero_gradient() -> None:
    level = Level(3, 2, noise="none", estimator="info_nce").double()
    r = recorded(level)
    z = r.z.detach().requires_grad_()
    loss = level.loss(dataclasses.replace(r, z=z), (), kinds=()).loss
    loss.backward()
    assert loss == 0
    assert not z.grad.any()


def test_a_critic_of_your_own() -> None:
    wide = functools.partial(DotProductCritic, hidden_channels=5, score_channels=7)
    level = Level(-1, -1, critic=wide).double()
    r = recorded(level)
    assert level.critic.z_score.weight.shape == (7, 5)
    assert (level.channels, level.constituent_channels) == (3, 2)
    assert level.loss(r).loss.isfinite()


def test_a_width_that_was_stated_holds_in_the_first_call() -> None:
    with pytest.raises(ValueError, match="width of 2 where 4 was stated"):
        recorded(Level(-1, 4).double())


@pytest.mark.parametrize("noise", ["conditional", "learned", "none"])
def test_parameters_of_the_first_call_are_drawn_as_those_of_stated_widths(noise: str) -> None:
    lazy = Level(-1, -1, noise=noise).double().eval()
    state = torch.get_rng_state()
    recorded(lazy)
    used = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randn(4, 3, dtype=torch.float64)
    torch.randn(12, 2, dtype=torch.float64)
    assert torch.get_rng_state().equal(used), "the first call draws nothing from the common random numbers"
    assert not any(m.training for m in lazy.modules())
    torch.default_generator.manual_seed(lazy._seed)
    expected = dict(Level(3, 2, noise=noise).double().named_parameters())
    assert set(dict(lazy.named_parameters())) == set(expected)
    for name, parameter in lazy.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
