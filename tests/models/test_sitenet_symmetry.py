"""Site-Net on classes of equal sites and pairs: the numbers of the plain path on the same distances."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from pyg_dim import native
from pyg_dim.data import Crystal, CrystalLoader, DenseSupercell, SymmetryClasses, load_dataset
from pyg_dim.data.keys import EQUALS_KEYS, forget
from pyg_dim.models import SiteNet
from pyg_dim.models.pair_attention import PairAttention
from pyg_dim.objectives.deep_infomax import KINDS, DeepInfoMax

SMALL: dict[str, Any] = {
    "site_channels": 8, "pair_channels": 6, "local_channels": 8, "pre_pool": [8, 12], "post_pool": [8, 10],
    "tolerance": 1e-4,
}  # fmt: skip
SYMMETRIC = ["NaCl", "CaF2", "CaTiO3", "TiO2", "Cu", "Si"]


@pytest.fixture
def crystals_of(crystals, batch_of):
    """``crystals_of(what)``: batches without classes: hand-made crystals, alone or together, and others."""
    cubic = replace(
        crystals["NaCl"],
        cell=2 * crystals["NaCl"].cell,
        fractional=np.concatenate([(crystals["NaCl"].fractional + n) / 2 for n in np.ndindex(2, 2, 2)]),
        z=np.tile(crystals["NaCl"].z, 8),
    )
    rng = np.random.default_rng(0)
    noisy = replace(cubic, fractional=cubic.fractional + rng.normal(scale=3e-7, size=cubic.fractional.shape))
    made = {
        "hand-made": [*SYMMETRIC, "triclinic"],
        "without symmetry": ["triclinic"],
        "one site": ["Cu"],
        "single": ["CaF2"],
        "supercells": [cubic, "NaCl", replace(noisy, cell=cubic.cell @ np.diag([1, 1, 1.003]))],
        "noisy": [noisy, "TiO2"],
    }

    def make(what: str):
        if what != "prototypes":
            return batch_of(made[what])
        dataset = load_dataset("prototypes").subset(torch.arange(0, 600, 20))
        batch = next(iter(CrystalLoader(dataset, DenseSupercell(), batch_sites=10**6)))
        return batch.apply(lambda t: t.double() if t.is_floating_point() else t)

    return make


WHAT = ["hand-made", "without symmetry", "one site", "single", "supercells", "noisy", "prototypes"]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def with_classes_and_without(model: SiteNet, batch: Any) -> tuple[Any, Any]:
    """The same distances in both."""
    batch = model.graph(copy(batch))
    plain = copy(batch)
    forget(plain, EQUALS_KEYS)
    assert "pair_index" in batch
    assert "pair_index" not in plain
    return batch, plain


def trained(objective: DeepInfoMax, batch: Any) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    losses = objective(batch, torch.Generator().manual_seed(0))
    losses["total"].backward()
    return losses | {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("what", WHAT)
def test_representation_loss_and_gradients(crystals_of, what, heads, blocks, training) -> None:
    model = SiteNet(**SMALL, heads=heads, blocks=blocks, noise="none").double().train(training)
    few, all_ = with_classes_and_without(model, crystals_of(what))
    symmetric = few.pair_dist.numel() < all_.edge_dist.numel()
    assert symmetric == (what != "without symmetry")
    close(model(few), model(all_))
    close(model.readout(few, "full"), model.readout(all_, "full"))
    objective = DeepInfoMax(model, KINDS).train(training)
    found, expected = trained(objective, few), trained(objective, all_)
    assert found.keys() == expected.keys()
    assert {"js/local", "js/global"} <= found.keys()
    assert any(n.startswith("encoder.local.blocks") for n in found)
    for name, value in found.items():
        close(value, expected[name])


def test_fewer_rows_are_computed(crystals_of) -> None:
    model = SiteNet(**SMALL).double()
    few, plain = with_classes_and_without(model, crystals_of("hand-made"))
    rows: list[tuple[int, int]] = []
    model.local.blocks[0].register_forward_hook(lambda _, inputs, __: rows.append((len(inputs[0]), len(inputs[1]))))
    model(few)
    model(plain)
    assert rows == [(few.site_count.numel(), few.pair_dist.numel()), (plain.z.numel(), plain.edge_dist.numel())]
    assert 3 * rows[0][1] < rows[1][1]


def test_plain_batches_and_classes_without_pairs_are_taken(crystals_of) -> None:
    """A batch that was built without classes, or with those of :class:`SymmetryClasses` that are not snapped."""
    model = SiteNet(**SMALL).double()
    batch = crystals_of("hand-made")
    known = SymmetryClasses(DenseSupercell(), 1e-4)(copy(batch))
    assert model(known).equal(model(batch))


def test_crystals_that_pyg_collates(crystals_of) -> None:
    model = SiteNet(**SMALL).double()
    batch = crystals_of("hand-made")
    sites = [batch.batch == number for number in range(batch.num_graphs)]
    alone = [
        Crystal(z=batch.z[mine], pos=batch.pos[mine], cell=batch.cell[[number]], x=batch.x[mine])
        for number, mine in enumerate(sites)
    ]
    together = next(iter(DataLoader([model.graph(crystal) for crystal in alone], batch_size=len(alone))))
    assert together.pair_index.max() == together.site_count.numel() - 1
    close(model(together), model(model.graph(batch)))


def test_a_count_is_as_many_equal_pairs() -> None:
    block = PairAttention(6, 4, 5, 2, [7], [9], update_pairs=True).double()
    x, e = torch.randn(5, 6, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    source, target, count = torch.randint(5, (30,)), torch.randint(5, (30,)), torch.randint(1, 6, (30,))
    gathered, pairs, weight = block(x, e, source, target, count)
    each = torch.repeat_interleave(count)
    many, many_pairs, many_weights = block(x, e[each], source[each], target[each])
    close(gathered, many)
    close(pairs[each], many_pairs)
    close(weight, torch.zeros_like(weight).index_add(0, each, many_weights))


def test_bfloat16_autocast_stays_close(crystals_of) -> None:
    model = SiteNet(**SMALL)
    batch = crystals_of("hand-made").apply(lambda t: t.float() if t.is_floating_point() else t)
    few, plain = with_classes_and_without(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(few)
    assert (half - model(plain)).norm() < 0.02 * model(plain).norm()


@pytest.mark.skipif(native.fault() is not None, reason=f"the kernels cannot be built here: {native.fault()}")
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("what", ["hand-made", "noisy", "prototypes"])
def test_kernels_count_pairs(crystals_of, what, heads, monkeypatch) -> None:
    """Against the plain path of all pairs, in PyTorch."""
    wide = {"site_channels": 16, "pair_channels": 16, "attention_hidden": [16], "value_hidden": [32]}
    model = SiteNet(**(SMALL | wide), heads=heads, noise="none").double()
    few, plain = with_classes_and_without(model, crystals_of(what))
    objective = DeepInfoMax(model, KINDS)
    expected = trained(objective, plain)
    counts = []
    kernel = PairAttention.fused
    monkeypatch.setattr(PairAttention, "fused", lambda *given: counts.append(given[4] is not None) or kernel(*given))
    model.set_kernels(True)
    found = trained(objective, few)
    assert counts == [True, False, False]  # the true pass, and both corrupted ones
    for name, value in found.items():
        close(value, expected[name])


def test_compiled_once_for_batches_of_every_size(batch_of) -> None:
    torch._dynamo.reset()
    model = SiteNet(**SMALL, noise="none").double()
    objective = DeepInfoMax(model)
    batches = [model.graph(batch_of(SYMMETRIC[first:last])) for first, last in ((0, 6), (0, 4), (2, 6), (1, 5))]
    eager = [trained(objective, batch) for batch in batches]
    model.set_compile(True)
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    graphs = []
    for batch, expected in zip(batches, eager, strict=True):
        for name, value in trained(objective, batch).items():
            close(value, expected[name])
        graphs.append(counters["unique_graphs"])
    assert graphs[1:] == graphs[:-1]
    assert graphs[0] > 0


def test_options() -> None:
    assert repr(SiteNet().graph) == "DenseSupercell(max_sites=50)"
    assert SiteNet().config["tolerance"] is None
    model = SiteNet(tolerance=1)
    assert repr(model.graph) == "SymmetryClasses(DenseSupercell(max_sites=50), tolerance=1.0, snap=True)"
    assert model.config["tolerance"] == 1.0
    with pytest.raises(ValueError, match="tolerance must be a difference of at least 0, not -1"):
        SiteNet(tolerance=-1)
