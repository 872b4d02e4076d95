"""The yardstick of the benchmarks: the authors' numbers (../shared/fixtures/sitenet_dim.md), and ours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pyg_dim import record
from pyg_dim.models import SiteNet
from pyg_dim.objectives.deep_infomax import DeepInfoMax

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    name = f"loaded_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks up its annotations
    spec.loader.exec_module(module)
    return module


reference = load("benchmarks/reference_sitenet_dim.py")
parity = load("tests/models/test_sitenet_parity.py")  # names of the parameters there and here
close = parity.close
needs_fixture = pytest.mark.skipif(
    not parity.FIXTURE.exists(), reason="needs the authors' numbers in ../shared/fixtures"
)
LOCAL_TERMS = ("true", "false_both", "false_distances", "false_composition")
GLOBAL_TERMS = ("true", "false_rolled", "false_composition", "false_structure", "false_permuted")
ENGINEERED = ("composition", "structure", "permuted")
SMALL = {"site_channels": 8, "pair_channels": 6, "local_channels": 7, "pre_pool": [8, 12], "post_pool": [8, 10]}


@pytest.fixture(scope="module")
def theirs():
    return parity.Theirs()


@pytest.fixture
def model(theirs) -> SiteNet:
    model = SiteNet(post_pool=(64, 64)).double()
    model.load_state_dict({ours: theirs[f"{part}/{name}"] for ours, part, name in parity.PARAMETERS})
    return model


def padded(theirs):
    return reference.PaddedBatch(
        theirs.x, theirs.distance, theirs["in/padding_mask"], theirs.source, theirs["in/batch_coo"],
        theirs["in/prim_size"],
    )  # fmt: skip


@needs_fixture
def test_padded_arrays_are_theirs(theirs) -> None:
    made, given = reference.pad_pairs(theirs.batch()), padded(theirs)
    for name in ("x", "distance", "padding", "source", "crystal", "count"):
        assert torch.equal(getattr(made, name), getattr(given, name)), name


@needs_fixture
def test_representations(model, theirs) -> None:
    batch = padded(theirs)
    z, hidden, weight = reference.encode(model, batch.x, batch.distance, batch.padding, batch.source)
    close(hidden, theirs["out/encode"])
    close(z, theirs["out/z_local"])
    close(weight, theirs["out/attention_weights"])
    close(reference.represent_crystals(model, batch, z)[0], theirs["out/global_rep"])


@needs_fixture
def test_false_locals(model, theirs) -> None:
    false = reference.false_locals(model, padded(theirs), theirs["engineered/permutation"])
    assert tuple(false) == ENGINEERED
    for kind, sites in false.items():
        assert not sites.requires_grad
        close(sites, theirs[f"engineered/{kind}"])


@needs_fixture
def test_terms_site_by_site(model, theirs) -> None:
    batch, z = padded(theirs), theirs["out/z_local"]
    local = reference.local_terms(model, batch, z)
    assert tuple(local) == LOCAL_TERMS
    for name, term in local.items():
        close(term, theirs[f"parts/{name}"])
    false = {kind: theirs[f"engineered/{kind}"] for kind in ENGINEERED}
    crystal = reference.global_terms(model, batch, theirs["out/global_rep"], z, false)
    assert tuple(crystal) == GLOBAL_TERMS
    for name, term in crystal.items():
        close(term, theirs[f"parts_global/{name}"])
    empty = reference.global_terms(model, batch, theirs["out/global_rep"], z, {})
    close(reference.jensen_shannon(empty, batch), theirs["out/global_dim_loss_empty"])


@needs_fixture
def test_losses_and_every_gradient(model, theirs) -> None:
    found = reference.losses(model, padded(theirs), theirs["engineered/permutation"])
    close(found.local, theirs["out/local_dim_loss"])
    close(found.crystal, theirs["out/global_dim_loss_engineered"])
    (found.local + found.crystal).backward()
    parity.check_gradients(model, theirs, "local", "local")
    parity.check_gradients(model, theirs, "global", "global_engineered")


@needs_fixture
def test_noise_and_kl(model, theirs) -> None:
    noise = theirs["kl/local_noise"], theirs["kl/global_noise"]
    found = reference.losses(model, padded(theirs), theirs["engineered/permutation"], noise)
    for ours, name in (
        (found.local, "local_dim_loss"), (found.local_kl, "local_kl"),
        (found.crystal, "global_dim_loss"), (found.crystal_kl, "global_kl"),
    ):  # fmt: skip
        close(ours, theirs[f"kl/{name}"])
    (found.local + found.crystal + 0.1 * (found.local_kl + found.crystal_kl)).backward()
    parity.check_gradients(model, theirs, "local", "kl/local")
    parity.check_gradients(model, theirs, "global", "kl/global")


@pytest.fixture
def random_batch(crystals, batch_of):
    """Crystals of one to seven sites, in random places of random cells: supercells of different sizes."""
    random = np.random.default_rng(0)
    kind = type(crystals["Cu"])
    made = [
        kind(np.eye(3) * random.uniform(3, 6) + random.normal(0, 0.4, (3, 3)), random.random((sites, 3)),
             random.integers(1, 80, sites))
        for sites in (3, 1, 7, 4, 2, 5)
    ]  # fmt: skip
    return batch_of(made, sites=24)


def test_padding_keeps_every_pair(random_batch) -> None:
    batch = reference.pad_pairs(random_batch)
    real = ~batch.padding
    assert batch.padding.any()
    assert torch.equal(batch.source[real], random_batch.edge_index[0])
    assert torch.equal(batch.distance[real], random_batch.edge_dist)
    assert torch.equal(batch.crystal[batch.source], batch.crystal[:, None].expand_as(batch.source))
    assert batch.distance[batch.padding].abs().max() == 0


def test_equals_our_representations_and_their_gradients(random_batch) -> None:
    model, batch = SiteNet(**SMALL).double(), reference.pad_pairs(random_batch)
    ours = model.represent(random_batch)
    z, *_ = reference.encode(model, batch.x, batch.distance, batch.padding, batch.source)
    crystal, hidden = reference.represent_crystals(model, batch, z)
    for mine, plain in ((ours.site, z), (ours.crystal, crystal), (ours.hidden, hidden)):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-11)
    parameters = [*model.local.parameters(), *model.pre_pool.parameters(), *model.output.parameters()]
    direction = torch.randn_like(crystal)
    for mine, plain in zip(
        torch.autograd.grad((ours.crystal * direction).sum(), parameters),
        torch.autograd.grad((crystal * direction).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-11)


def test_equals_our_true_terms(random_batch) -> None:
    model, batch = SiteNet(**SMALL).double().eval(), reference.pad_pairs(random_batch)
    with record(model, random_batch, isolate=True) as tape:
        model(random_batch)
    local, crystal = (record_.level.loss(record_).terms["true"] for record_ in tape.records)
    z, _, _ = reference.encode(model, batch.x, batch.distance, batch.padding, batch.source)
    of_pairs = reference.local_terms(model, batch, z)["true"]
    of_sites = reference.global_terms(model, batch, reference.represent_crystals(model, batch, z)[0], z, {})["true"]
    for ours, plain in ((local, of_pairs), (crystal, of_sites)):
        torch.testing.assert_close(ours, reference.crystal_means(plain, batch).mean(), rtol=1e-9, atol=0)


def test_a_step_moves_the_parameters_that_ours_moves(random_batch) -> None:
    model, batch = SiteNet(**SMALL).double(), reference.pad_pairs(random_batch)
    reference.training_loss(model, batch).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    model.zero_grad()
    DeepInfoMax(model)(random_batch)["total"].backward()
    ours = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    # What shifts all logits of a site alike moves by rounding alone.
    alike = {"local.blocks.0.logits.bias", "local.blocks.0.attention.0.norm.bias"}
    assert moved - alike == ours - alike
    assert moved | alike == {name for name, _ in model.named_parameters()}


def test_the_levels_are_isolated(random_batch) -> None:
    model, batch = SiteNet(**SMALL).double(), reference.pad_pairs(random_batch)
    found = reference.losses(model, batch, torch.arange(batch.source.size(1)))
    found.crystal.backward()
    assert all(p.grad is None for p in [*model.local.parameters(), *model.local_level.parameters()])


def test_other_options_are_refused(random_batch) -> None:
    with pytest.raises(ValueError, match=r"this Site-Net has \{'heads': 2\}"):
        reference.training_loss(SiteNet(**SMALL, heads=2).double(), reference.pad_pairs(random_batch))
