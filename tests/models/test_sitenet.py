from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyg_dim.models import SiteNet, build
from pyg_dim.models.sitenet import PairAttention
from pyg_dim.objectives.deep_infomax import DeepInfoMax

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
VARIANTS = {
    "default": {},
    "two heads": {"heads": 2},
    "three blocks": {"blocks": 3},
    "heads and blocks": {"heads": 2, "blocks": 2, "attention_hidden": [16, 8], "value_hidden": []},
}
SMALL = {"site_channels": 8, "pair_channels": 6, "local_channels": 8, "pre_pool": [8, 12], "post_pool": [8, 10]}


@pytest.fixture(params=VARIANTS, ids=str)
def model(request) -> SiteNet:
    return SiteNet(**(SMALL | VARIANTS[request.param])).double().eval()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def rotation() -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def test_site_order(model, batch_of, crystals) -> None:
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(crystals[n].z)) for n in NAMES]
    shuffled = [
        replace(crystals[n], z=crystals[n].z[o], fractional=crystals[n].fractional[o])
        for n, o in zip(NAMES, orders, strict=True)
    ]
    a, b = model.represent(batch_of(NAMES)), model.represent(batch_of(shuffled))
    close(a.crystal, b.crystal)
    first = np.cumsum([0] + [len(o) for o in orders[:-1]])
    close(a.site[np.concatenate([f + o for f, o in zip(first, orders, strict=True)])], b.site)


def test_origin_and_lattice_translations(model, batch_of, crystals) -> None:
    moved = [
        replace(c, fractional=c.fractional + [0.31, -0.17, 0.44] + np.arange(len(c.z))[:, None] * [1, -2, 0])
        for c in (crystals[n] for n in NAMES)
    ]
    close(model(batch_of(NAMES)), model(batch_of(moved)))


def test_rotation(model, batch_of, crystals) -> None:
    turned = [replace(crystals[n], cell=crystals[n].cell @ rotation().T) for n in NAMES]
    close(model(batch_of(NAMES)), model(batch_of(turned)))


def test_batched_equals_one_by_one(model, batch_of) -> None:
    together = model(batch_of(NAMES))
    close(together, torch.cat([model(batch_of([name])) for name in NAMES]))
    close(together, model(batch_of(NAMES[::-1])).flip(0))


@pytest.mark.parametrize("kind", ["global", "full"])
def test_readouts(model, batch_of, kind: str) -> None:
    out = model.readout(batch_of(NAMES), kind)
    assert out.shape == (6, 10 if kind == "global" else 10 + 8 + 4 * 8)
    close(out, torch.cat([model.readout(batch_of([n]), kind) for n in NAMES]))


def test_full_readout_holds_the_statistics_of_the_sites(batch_of) -> None:
    model = SiteNet(**SMALL).double().eval()
    batch = batch_of(["triclinic", "Cu"])
    site, full = model.represent(batch).site, model.readout(batch, "full")
    mine = site[batch.batch == 0]
    expected = torch.cat([mine.mean(0), mine.std(0, correction=0), mine.amin(0), mine.amax(0)])
    close(full[0, 18:], expected)
    assert full[1, 26:34].abs().max() == 0  # one site has no spread


def test_split_layers_equal_the_concatenation() -> None:
    """The plain path of Site-Net: build [x_i, x_j, e_ij], apply the networks, softmax site by site."""
    block = PairAttention(6, 4, 5, 2, [7, 8], [9], update_pairs=True).double()
    x, e = torch.randn(5, 6, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    source, target = torch.randint(5, (30,)), torch.randint(4, (30,))
    gathered, pairs, weight = block(x, e, source, target)
    c = torch.cat([x[target], x[source], e], dim=1)
    logits, values = block.logits(block.attention(c)), block.value(c)
    close(pairs, block.pair(c))
    for site in range(4):
        mine = target == site
        w = F.softmax(logits[mine], dim=0)
        close(weight[mine], w)
        close(gathered[site], torch.einsum("nh,nv->hv", w, values[mine]).flatten())
    assert gathered[4].abs().max() == 0  # a site without pairs


def test_compiled_equals_eager_in_value_and_gradient(batch_of) -> None:
    model = SiteNet(**SMALL).double()
    objective = DeepInfoMax(model).eval()
    results = []
    for compiled in (False, True):
        model.set_compile(compiled)
        objective.zero_grad()
        losses = [objective(batch_of(names), torch.Generator().manual_seed(0))["total"] for names in (NAMES, NAMES[:3])]
        sum(losses).backward()
        results.append(
            [torch.stack(losses).detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    for eager, compiled in zip(*results, strict=True):
        close(compiled, eager)


def test_default_lengths(batch_of) -> None:
    model = build("sitenet").double()
    assert model.channels == 128
    assert model(batch_of(["NaCl"])).shape == (1, 128)
    assert model.graph.max_sites == 50


def test_config_makes_an_equal_encoder(model, batch_of) -> None:
    twin = build(model.name, **model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    assert twin(batch_of(NAMES)).equal(model(batch_of(NAMES)))
    assert twin.config == model.config


def test_every_parameter_learns(batch_of, generator) -> None:
    objective = DeepInfoMax(SiteNet(**SMALL, heads=2, blocks=2).double())
    objective(batch_of(NAMES), generator)["total"].backward()
    # Softmax does not change when all logits do: its bias has no gradient by construction.
    silent = {n for n, p in objective.encoder.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert all(n.endswith(("logits.bias",)) or ("attention" in n and n.endswith("norm.bias")) for n in silent), silent


def test_distance_weights_are_an_option(batch_of, generator) -> None:
    losses = [
        DeepInfoMax(model).eval()(batch_of(NAMES), torch.Generator().manual_seed(0))["js/local"]
        for model in (_seeded(distance_weights=True), _seeded(distance_weights=False))
    ]
    assert losses[0] != losses[1]


def _seeded(**options: object) -> SiteNet:
    torch.manual_seed(0)
    return SiteNet(**SMALL, **options).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_follows_the_dtype_of_the_batch(batch_of, generator, dtype: torch.dtype) -> None:
    objective = DeepInfoMax(SiteNet(**SMALL).to(dtype))
    losses = objective(batch_of(NAMES, dtype), generator)
    assert losses["total"].dtype == dtype


def test_bfloat16_autocast_stays_close(batch_of) -> None:
    objective = DeepInfoMax(SiteNet(**SMALL)).eval()
    batch = batch_of(NAMES, torch.float32)
    full = objective(batch, torch.Generator().manual_seed(0))["total"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(batch, torch.Generator().manual_seed(0))["total"]
    assert (half - full).abs() < 0.05 * full


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown model 'sitenets'; known: cgcnn, sitenet"):
        build("sitenets")
    with pytest.raises(ValueError, match=r"'sitenet'.*head"):
        build("sitenet", head=2)
    with pytest.raises(ValueError, match="heads must be at least 1"):
        build("sitenet", heads=0)
    with pytest.raises(ValueError, match="pre_pool needs"):
        build("sitenet", pre_pool=[])
    with pytest.raises(ValueError, match="attention_hidden must be at least 1"):
        build("sitenet", attention_hidden=[8, 0])
    with pytest.raises(ValueError, match="local_channels must be at least 1, not -2"):
        build("sitenet", local_channels=-2)
    with pytest.raises(ValueError, match="global, full"):
        SiteNet(**SMALL).readout(None, "local")


def test_levels_know_what_they_are_of_where_every_crystal_has_one_site(batch_of, relabelled, generator) -> None:
    """Sizes cannot tell sites from crystals there."""
    batch = batch_of(["Cu", relabelled("Cu", [28])])
    losses = DeepInfoMax(SiteNet(**SMALL).double())(batch, generator)
    assert losses["js/local"] == losses["detail/local_level/js"]
    assert losses["js/global"] == losses["detail/global_level/js"]
