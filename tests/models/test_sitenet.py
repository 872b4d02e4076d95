from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pyg_dim.models import SiteNet, build
from pyg_dim.models.pair_attention import PairAttention
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


def test_batched_equals_one_by_one(model, batch_of) -> None:
    together = model(batch_of(NAMES))
    close(together, torch.cat([model(batch_of([name])) for name in NAMES]))
    close(together, model(batch_of(NAMES[::-1])).flip(0))


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


def test_default_lengths(batch_of) -> None:
    model = build("sitenet").double()
    assert model.channels == 128
    assert model(batch_of(["NaCl"])).shape == (1, 128)
    assert model.graph.max_sites == 50


def test_distance_weights_are_an_option(batch_of, generator) -> None:
    losses = [
        DeepInfoMax(model).eval()(batch_of(NAMES), torch.Generator().manual_seed(0))["js/local"]
        for model in (_seeded(distance_weights=True), _seeded(distance_weights=False))
    ]
    assert losses[0] != losses[1]


def _seeded(**options: object) -> SiteNet:
    torch.manual_seed(0)
    return SiteNet(**SMALL, **options).double()


def test_errors() -> None:
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


def test_levels_know_what_they_are_of_where_every_crystal_has_one_site(batch_of, relabelled, generator) -> None:
    """Sizes cannot tell sites from crystals there."""
    batch = batch_of(["Cu", relabelled("Cu", [28])])
    losses = DeepInfoMax(SiteNet(**SMALL).double())(batch, generator)
    assert losses["js/local"] == losses["detail/local_level/js"]
    assert losses["js/global"] == losses["detail/global_level/js"]
