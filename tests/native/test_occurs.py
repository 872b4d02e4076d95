"""False samples that are true by chance: the kernels against the plain path, and against a loop."""

from __future__ import annotations

import pytest
import torch

from pyg_dim import native
from pyg_dim.false_samples import equality
from pyg_dim.false_samples.permutation import permutation
from pyg_dim.false_samples.transplant import transplant

pytestmark = pytest.mark.usefixtures("kernels")
NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu", "NaCl", "Si", "CaF2"]
TYPES = [torch.float64, torch.float32]


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch):
    """``plainly(f)``: what f gives without the kernels."""

    def plainly(run):
        with monkeypatch.context() as patch:
            patch.setattr(equality, "rows_of", lambda batch: None)
            return run()

    return plainly


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_edges(batch_of, plainly, dtype) -> None:
    batch = batch_of(NAMES, dtype)
    # Lengths on either side of the tolerance, and nearer than rounding.
    noise = torch.tensor([0, 3e-4, 6e-4, 9.7e-4, 1.03e-3, 3e-3, 1e-8], dtype=dtype)
    batch.edge_dist = batch.edge_dist + noise[torch.randint(7, batch.edge_dist.shape)]
    for _ in range(3):
        target = torch.randint(batch.z.numel(), batch.z.shape)
        species = batch.z[torch.randperm(batch.z.numel())]
        ours = equality.edges_occur(batch, target, species)
        plain = plainly(lambda t=target, s=species: equality.edges_occur(batch, t, s))
        assert ours.equal(plain)
        assert 0 < ours.sum() < ours.numel()


def test_edges_pair_by_pair(batch_of) -> None:
    batch = batch_of(["NaCl", "ZnS", "triclinic"], sites=6)
    batch.edge_dist = batch.edge_dist + 2e-3 * torch.rand_like(batch.edge_dist)
    site_target, species = torch.randint(11, (11,)), batch.z[torch.randperm(11)]
    source, target = batch.edge_index.tolist()
    length, z = batch.edge_dist.tolist(), batch.z.tolist()
    expected = [
        any(
            target[f] == site_target[target[e]] and z[source[f]] == species[source[e]]
            and abs(length[f] - length[e]) < equality.DISTANCE_TOLERANCE
            for f in range(len(source))
        )
        for e in range(len(source))
    ]  # fmt: skip
    assert equality.edges_occur(batch, site_target, species).tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_environments(batch_of, plainly, close, dtype) -> None:
    batch = batch_of(NAMES, dtype)
    species = batch.z[torch.randperm(batch.z.numel())]
    ours = equality.environments(batch, species)
    assert ours.dtype == torch.float64
    close(ours, plainly(lambda: equality.environments(batch, species)), 1e-13)


def test_sites(batch_of, plainly) -> None:
    batch = batch_of(NAMES)
    true = equality.environments(batch, batch.z)
    crystals = batch.ptr.numel() - 1
    for _ in range(5):
        donor = torch.randint(batch.z.numel(), batch.z.shape)
        species = batch.z[donor]
        # On either side of the tolerance in one of the numbers.
        shift = torch.tensor([0, 1.9e-3, -1.9e-3, 2.1e-3, -2.1e-3], dtype=torch.float64)
        values = true[donor].clone()
        column = torch.randint(4, (species.numel(),))
        values[torch.arange(species.numel()), column] += shift[torch.randint(5, (species.numel(),))]
        crystal = torch.where(
            torch.rand(species.numel()) < 0.5, batch.batch[donor], torch.randint(crystals, species.shape)
        )
        arguments = (batch, species, values, crystal, batch.z, true)
        ours = equality.sites_occur(*arguments)
        assert ours.equal(plainly(lambda a=arguments: equality.sites_occur(*a)))
        assert 0 < ours.sum() < ours.numel()


def test_integers_of_another_type_and_strides(batch_of, plainly) -> None:
    batch = batch_of(NAMES)
    true = equality.environments(batch, batch.z)
    wide = torch.stack([batch.z, batch.z], dim=1)
    fingerprint = torch.cat([true, true], dim=1)[:, 4:]
    batch.z = batch.z.int()
    for species in (wide[:, 0], wide[:, 1].short()):
        assert equality.environments(batch, species).equal(true)
        for run in (
            lambda s=species: equality.edges_occur(batch, torch.arange(s.numel()).flip(0), s),
            lambda s=species: equality.sites_occur(batch, s, fingerprint, batch.batch, s, fingerprint),
        ):
            assert run().equal(plainly(run))


@pytest.mark.parametrize("names", [NAMES, ["Cu"], ["NaCl", "NaCl"]], ids=["many", "one", "equal"])
def test_false_samples_of_a_batch(batch_of, plainly, names) -> None:
    batch = batch_of(names)
    for make in (transplant, permutation):

        def run(make=make):
            return make(batch, generator=torch.Generator().manual_seed(1))

        for ours, plain in zip(run().kinds, plainly(run).kinds, strict=True):
            for name in ("keep_edges", "keep_sites"):
                a, b = getattr(ours, name), getattr(plain, name)
                assert (a is None and b is None) or a.equal(b)


def test_a_kernel_that_cannot_be_built(batch_of, monkeypatch) -> None:
    batch = batch_of(NAMES)
    target, environment = torch.randperm(batch.z.numel()), equality.environments(batch, batch.z)
    expected = equality.edges_occur(batch, target, batch.z)
    monkeypatch.setattr(native, "fault", lambda name="layout", *_: "broken" if name == "occurs" else None)
    for name in ("native_edges_occur", "native_environments", "native_sites_occur"):
        monkeypatch.delattr(equality, name)
    assert equality.edges_occur(batch, target, batch.z).equal(expected)
    torch.testing.assert_close(equality.environments(batch, batch.z), environment)
    assert equality.sites_occur(batch, batch.z, environment, batch.batch, batch.z, environment).all()


def test_threads(batch_of, with_threads) -> None:
    batch = batch_of(NAMES)
    target, species = torch.randperm(batch.z.numel()), batch.z.flip(0)
    found = []
    for number in (1, 2, 7):
        with with_threads(number):
            environment = equality.environments(batch, species)
            found.append(
                [
                    equality.edges_occur(batch, target, species), environment,
                    equality.sites_occur(batch, species, environment, batch.batch, batch.z, environment),
                ]
            )  # fmt: skip
    assert all(a.equal(b) for several in found[1:] for a, b in zip(several, found[0], strict=True))


def test_nan_equals_nothing(batch_of) -> None:
    batch = batch_of(["NaCl", "Cu"])
    batch.edge_dist = batch.edge_dist.clone()
    batch.edge_dist[0] = float("nan")
    assert not equality.edges_occur(batch, torch.arange(3), batch.z)[0]
    environment = equality.environments(batch, batch.z)
    assert environment[0].isnan().all()
    assert environment[1:].isfinite().all()
    found = equality.sites_occur(batch, batch.z, environment, batch.batch, batch.z, environment)
    assert found.tolist() == [False, True, True]
