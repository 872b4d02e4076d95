"""Scores by the kernel are those of the plain path, or are not made at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyg_dim import Level, level, native, record
from pyg_dim.constituents import Constituents
from pyg_dim.critic import BilinearCritic, DotProductCritic
from pyg_dim.models import MODELS, build
from pyg_dim.objectives.deep_infomax import KINDS, DeepInfoMax
from pyg_dim.scoring import fused_score_terms, score_terms
from pyg_dim.tape import FalseSample

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu", "NaCl"]
SMALL = {
    "sitenet": {"site_channels": 8, "pair_channels": 6, "local_channels": 8, "pre_pool": [8, 12], "post_pool": [8, 10]},
    "cgcnn": {"site_channels": 8, "convolutions": 2, "crystal_channels": 10, "gaussian_step": 0.8, "k": 9},
    "megnet": {"element_channels": 5, "gaussians": 20, "blocks": 2, "feature_channels": 8, "dense_hidden": [9],
               "convolution_hidden": [10, 11], "crystal_channels": 12},
    "alignn": {"alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 8, "embedding_channels": 7,
               "crystal_channels": 12, "edge_gaussians": 20, "angle_gaussians": 10, "k": 6},
    "roost": {"site_channels": 8, "layers": 2, "heads": 2, "hidden_channels": 9, "trunk": [16, 12],
              "crystal_channels": 10, "element_channels": 7},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    if (reason := native.fault()) is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _exact_softplus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's gives t itself for t > 20, an error of up to 2e-9; the kernel does not."""
    monkeypatch.setattr(F, "softplus", lambda t: torch.logaddexp(t, torch.zeros_like(t)))


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every call of the kernel by a level is compared with the plain path; whether it served, call by call."""
    served = []

    def checked(critic, z, sets, index, group_targets):
        leaves = [z.detach().requires_grad_(), *critic.parameters()]
        found = fused_score_terms(critic, leaves[0], sets, index, group_targets)
        served.append(found is not None)
        if found is not None:
            plain = score_terms(critic, leaves[0], sets)
            for (ours, valid), (theirs, expected) in zip(found, plain, strict=True):
                assert valid.equal(expected)
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
            sums = [sum((k + 1) * mean.sum() for k, (mean, _) in enumerate(means)) for means in (found, plain)]
            gradients = (torch.autograd.grad(total, leaves) for total in sums)
            for ours, theirs in zip(*gradients, strict=True):
                assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max().clamp(min=1e-3)
        return fused_score_terms(critic, z, sets, index, group_targets)

    monkeypatch.setattr(level, "fused_score_terms", checked)
    return served


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kinds", [("other",), ("other", "composition", "polymorph", "permutation"), KINDS], ids=str)
def test_every_level_of_every_encoder(name: str, kinds, compare, batch_of) -> None:
    model = build(name, **SMALL[name]).double()
    model.set_kernels(True)
    batch = model.graph(batch_of(NAMES))
    DeepInfoMax(model, kinds=kinds)(batch)["total"].backward()
    assert len(compare) == sum(isinstance(m, Level) for m in model.modules())
    assert compare[-1], "the crystal level is that of the sites, sorted by crystal"
    if name == "sitenet" and "unconnected" not in kinds:
        assert all(compare)


@pytest.mark.parametrize("names", [["Cu"], ["Cu", "Cu"], ["TiO2"]], ids=str)
def test_small_batches(names, compare, batch_of) -> None:
    model = build("sitenet", **SMALL["sitenet"]).double()
    model.set_kernels(True)
    DeepInfoMax(model)(batch_of(names))["total"].backward()
    assert len(compare) == 2


def constituents(groups: int = 5, n: int = 23) -> tuple[torch.Tensor, Constituents, torch.Tensor]:
    index = torch.randint(groups - 1, (n,)).sort().values  # the last has none
    parts = ((torch.randn(groups, 3).double(), torch.randint(groups, (n,))), (torch.rand(n, 1).double(), None))
    return torch.randn(groups, 4).double(), Constituents(*parts), index


def terms(run: Callable[..., object], critic: nn.Module, z, parts, index, weight=None, targets=None):
    itself = torch.arange(z.size(0))
    targets = [itself, itself.flip(0)] if targets is None else targets
    ways = [(True, index, weight), (False, itself.flip(0)[index], weight)]
    return run(critic, z, [(parts, ways)], *([] if run is score_terms else [index, targets]))


def test_groups_without_weight() -> None:
    z, c, index = constituents()
    critic = DotProductCritic(4, 4).double()
    weight = torch.rand(23).double() * (index != 1)
    found = [terms(run, critic, z, c.parts, index, weight) for run in (fused_score_terms, score_terms)]
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
        assert not plain[1].all()


class Squared(DotProductCritic):
    """A critic of one's own, with other keys."""

    def keys(self, constituents: Constituents) -> torch.Tensor:
        return super().keys(constituents).square()


@pytest.mark.parametrize(
    "critic",
    [
        BilinearCritic(4, 4).double(), Squared(4, 4).double(), DotProductCritic(4, 4, hidden_channels=24).double(),
        DotProductCritic(4, 4),
    ],
    ids=["bilinear", "own keys", "width", "type"],
)  # fmt: skip
def test_critics_that_are_not_covered(critic) -> None:
    z, c, index = constituents()
    assert terms(fused_score_terms, critic, z, c.parts, index) is None


def test_sets_that_are_not_covered(monkeypatch) -> None:
    critic = DotProductCritic(4, 4).double()
    z, c, index = constituents()
    (x, source), (d, _) = c.parts
    n, itself = index.numel(), torch.arange(5)
    assert terms(fused_score_terms, critic, z, c.parts, index) is not None
    uncovered = {
        "no target of whole groups": {"targets": [itself, None]},
        "unsorted groups": {"index": index.flip(0)},
        "rows of others than the groups": {"parts": ((torch.cat([x, x]), source), (d, None))},
        "two sources": {"parts": ((x[:, :2], source), (x[:, :1], source.clone()), (d, None))},
        "weights with gradient": {"weight": torch.rand(n).double().requires_grad_()},
        "lengths with gradient": {"parts": ((x, source), (d.clone().requires_grad_(), None))},
        "lengths of another type": {"parts": ((x, source), (d.float(), None))},
        "integers of another type": {"index": index.int()},
        "sources of another type": {"parts": ((x, source.int()), (d, None))},
    }
    for name, arguments in uncovered.items():
        given = {"parts": c.parts, "index": index} | arguments
        assert terms(fused_score_terms, critic, z, **given) is None, name
    with torch.autocast("cpu"):
        assert terms(fused_score_terms, critic, z, c.parts, index) is None
    monkeypatch.setattr(native, "fault", lambda name="layout", *_, **widths: "broken" if name == "scores" else None)
    assert terms(fused_score_terms, critic, z, c.parts, index) is None


def test_sets_of_another_kind_than_the_first() -> None:
    critic = DotProductCritic(4, 4).double()
    z, c, index = constituents()
    (x, source), (d, _) = c.parts
    itself = torch.arange(5)
    other = torch.randint(5, source.shape)
    dense = torch.randn(23, 4).double()
    shorter = index[:-2]
    for second in (
        ((x, other), (d, None)),
        ((dense, None),),
        ((d, None), (x, source)),
        # Begins where the first does.
        ((x, source[: shorter.numel()]), (d[: shorter.numel()], None)),
        ((x, torch.stack([source, source], 1).flatten()[::2]), (d, None)),
    ):
        sets = [(c.parts, [(True, index, None)]), (second, [(False, index, None)])]
        assert fused_score_terms(critic, z, sets, index, [itself, itself]) is None


def test_gradients_of_constituents_are_those_of_the_plain_path() -> None:
    critic = DotProductCritic(4, 6).double()
    z, c, index = constituents()
    (x, source), (d, _) = c.parts
    leaves = [x.requires_grad_(), torch.randn(23, 2).double().requires_grad_(), z.requires_grad_()]
    parts = ((leaves[0], source), (d, None), (leaves[1], None))
    found = []
    for run in (fused_score_terms, score_terms):
        means = terms(run, critic, z, parts, index)
        found.append(torch.autograd.grad(sum(mean.square().sum() for mean, _ in means), leaves))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_a_level_with_a_sample_of_other_groups_takes_the_plain_path(compare) -> None:
    z, c, index = constituents()
    one = Level(4, 4, noise="none").double()
    one.fused = True
    with record(one) as tape:
        one(z, constituents=c, index=index)
    sample = FalseSample("a", c, index, None, torch.arange(5))
    covered = one.loss(tape.records[0], [sample], kinds=()).loss
    plain = one.loss(tape.records[0], [replace(sample, group_target=None)], kinds=()).loss
    torch.testing.assert_close(covered, plain, rtol=1e-10, atol=1e-12)
    assert compare == [True, False]
