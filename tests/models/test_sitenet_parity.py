"""Numbers of the original authors' program, float64 (see ../shared/fixtures/sitenet_dim.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_dim import native, record
from pyg_dim.constituents import Constituents
from pyg_dim.data.batch import CrystalBatch
from pyg_dim.losses import crystal_mean, group_mean, kl_term
from pyg_dim.models import SiteNet
from pyg_dim.native.pair_rows import rows_of
from pyg_dim.noise import perturb
from pyg_dim.scoring import score_terms
from pyg_dim.tape import FalseSample

FIXTURE = Path(__file__).parents[2] / "../shared/fixtures/sitenet_dim.npz"
pytestmark = pytest.mark.skipif(not FIXTURE.exists(), reason="needs the authors' numbers in ../shared/fixtures")

# Ours on the left, theirs on the right.
LOCAL = {
    "local.embed_site.linear": "site_featurization",
    "local.embed_site.norm": "site_featurization_norm.Norm",
    "local.embed_pair.linear": "interaction_featurization",
    "local.embed_pair.norm": "interaction_featurization_norm.Norm",
    "local.blocks.0.attention.0.linear": "ije_to_multihead.linear_layers.0",
    "local.blocks.0.attention.0.norm": "ije_to_multihead.norm_layers.0.Norm",
    "local.blocks.0.logits": "pre_softmax_linear",
    "local.blocks.0.value.0.linear": "ije_to_attention_features.linear_layers.0",
    "local.blocks.0.value.0.norm": "ije_to_attention_features.norm_layers.0.Norm",
    "local.blocks.0.value.1.linear": "ije_to_attention_features.linear_layers.1",
    "local.blocks.0.value.1.norm": "ije_to_attention_features.norm_layers.1.Norm",
    "local.output": "global_linear.linear_layers.0",
    "local_level.noise.linear": "global_linear_std.linear_layers.0",
    "local_level.critic.z_hidden": "dim_upscale.linear_layers.0",
    "local_level.critic.z_score": "dim_upscale_final_layer",
    "local_level.critic.c_hidden": "sample_upscale.linear_layers.0",
    "local_level.critic.c_score": "sample_upscale_final_layer",
}
GLOBAL = {
    "pre_pool.0.linear": "pre_pool_layers.0",
    "pre_pool.0.norm": "pre_pool_layers_norm.0.Norm",
    "pre_pool.1.linear": "pre_pool_layers.1",
    "pre_pool.1.norm": "pre_pool_layers_norm.1.Norm",
    "post_pool.0.linear": "post_pool_layers.0",
    "post_pool.0.norm": "post_pool_layers_norm.0",
    "output": "post_pool_layers.1",
    "global_level.noise.linear": "post_pool_layer_std",
    "global_level.critic.z_hidden": "global_upscale.linear_layers.0",
    "global_level.critic.z_score": "global_upscale_final_layer",
    "global_level.critic.c_hidden": "localenv_upscale.linear_layers.0",
    "global_level.critic.c_score": "localenv_upscale_final_layer",
}
PARAMETERS = [
    (f"{ours}.{kind}", part, f"{theirs}.{kind}")
    for part, names in (("local", LOCAL), ("global", GLOBAL))
    for ours, theirs in names.items()
    for kind in ("weight", "bias")
]


class Theirs:
    """The fixture as tensors, in the authors' padded layout."""

    def __init__(self) -> None:
        with np.load(FIXTURE) as file:
            self.values = {k: torch.from_numpy(np.asarray(file[k])) for k in file.files if k != "in/formula"}
        self.real = ~self["in/padding_mask"]
        self.source, self.target = self["in/attention_j"], self["in/attention_i"]
        self.distance = self["in/distances"].squeeze(-1)
        self.x = self["in/site_features"]
        self.sites = self.x.size(0)
        self.half = self.sites // 2
        weight = self["parts/distance_weights"] * self["parts/distance_weight_norm"][:, None]
        self.omega = weight * self.real

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.values[key]

    def roll(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.roll(self.half, dims=0)

    def batch(self) -> CrystalBatch:
        return CrystalBatch(
            z=self["in/atomic_numbers"], x=self.x, batch=self["in/batch_coo"], ptr=self["in/batch_csr"],
            edge_index=torch.stack([self.source[self.real], self.target[self.real]]),
            edge_dist=self.distance[self.real], max_sites=12,
        )  # fmt: skip

    def local_false(self) -> list[FalseSample]:
        """The three false terms of the local loss, fed in as the authors made them: rolled rows of padded arrays."""
        x, d, target = self.x[self.source], self.distance, self.target.flatten()
        rolled_x, rolled_d, rolled_omega = self.roll(x), self.roll(d), self.roll(self.omega)

        def sample(kind, features, distance, weight):
            parts = Constituents((features.flatten(0, 1), None), (distance.flatten()[:, None], None))
            return FalseSample(kind, parts, target, weight.flatten())

        return [
            sample("both", rolled_x, rolled_d, rolled_omega),
            sample("distances", x, rolled_d, rolled_omega),
            sample("composition", rolled_x, d, self.omega),
        ]

    def global_js(self, model: SiteNet, z: torch.Tensor, engineered: bool) -> torch.Tensor:
        """Their global loss from our terms.

        Their rolled term enters the mean of the crystal that gave the site, ours (eq. 6) that of the crystal it is
        scored against; so it is taken site by site here, and averaged as they do.
        """
        crystal, critic = self["in/batch_coo"], model.global_level.critic
        sites = Constituents((self["out/z_local"], None)).parts
        sets = [(sites, [(True, crystal, None)])]
        if engineered:
            fakes = (self[f"engineered/{kind}"] for kind in ("composition", "structure", "permuted"))
            sets += [(Constituents((fake, None)).parts, [(False, crystal, None)]) for fake in fakes]
        true, *false = (mean for mean, _ in score_terms(critic, z, sets))
        every_site = torch.arange(self.sites)
        ((rolled, _),) = score_terms(critic, z[self.roll(crystal)], [(sites, [(False, every_site, None)])])
        false.append(group_mean(rolled, crystal, 8)[0])
        return crystal_mean(true + torch.stack(false).mean(0), torch.ones(8, dtype=torch.bool), None, 0)


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    return Theirs()


@pytest.fixture(params=["plain", "kernels"])
def model(theirs: Theirs, request: pytest.FixtureRequest) -> SiteNet:
    kernels = request.param == "kernels"
    if kernels and (reason := native.fault()) is not None:
        pytest.skip(reason)
    model = SiteNet(post_pool=(64, 64)).double()
    state = {ours: theirs[f"{part}/{name}"] for ours, part, name in PARAMETERS}
    missing = set(model.state_dict()) ^ set(state)
    assert not missing, f"parameters without a counterpart: {missing}"
    model.load_state_dict(state)
    model.set_kernels(kernels)
    return model.eval()  # no noise


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-9) -> None:
    scale = theirs.abs().max().clamp(min=1e-12)
    assert ((ours - theirs).abs().max() / scale).item() < tolerance


def check_gradients(model: SiteNet, theirs: Theirs, part: str, prefix: str) -> None:
    parameters = dict(model.named_parameters())
    checked = 0
    for ours, of, name in PARAMETERS:
        full, norm = f"grad_{prefix}/{name}", f"gradnorm_{prefix}/{name}".replace("gradnorm_kl/", "kl/gradnorm_")
        if of != part or norm not in theirs.values:
            continue
        gradient = parameters[ours].grad
        gradient = torch.zeros_like(parameters[ours]) if gradient is None else gradient
        if theirs[norm] < 1e-12:
            assert gradient.norm() < 1e-12, ours
            continue
        if full in theirs.values:
            close(gradient, theirs[full])
        assert abs(gradient.norm() / theirs[norm] - 1) < 1e-9, ours
        checked += 1
    assert checked > 10


def test_local_encoder(model: SiteNet, theirs: Theirs) -> None:
    batch = theirs.batch()
    assert rows_of(batch) is not None or not model.kernels
    site, hidden = model.of_sites(batch)
    close(hidden, theirs["out/encode"])
    close(site, theirs["out/z_local"])


def test_attention_weights(model: SiteNet, theirs: Theirs) -> None:
    batch, local = theirs.batch(), model.local
    linear = local.embed_pair.linear
    pairs = local.embed_pair.finish(batch.edge_dist[:, None] * linear.weight[:, 0] + linear.bias)
    *_, weight = local.blocks[0](local.embed_site(batch.x), pairs, *batch.edge_index)
    close(weight[:, 0], theirs["out/attention_weights"][theirs.real])


def test_local_loss_its_terms_and_every_gradient(model: SiteNet, theirs: Theirs) -> None:
    with record(model, theirs.batch(), isolate=True) as tape:
        model(theirs.batch())
    loss = model.local_level.loss(tape.records[0], theirs.local_false(), kinds=())
    close(loss.loss, theirs["out/local_dim_loss"])
    crystal = theirs["in/batch_coo"]
    for kind, name in {"true": "true", "both": "false_both", "distances": "false_distances",
                       "composition": "false_composition"}.items():  # fmt: skip
        per_site = theirs[f"parts/{name}"]
        sums = torch.zeros(8, dtype=torch.float64).index_add(0, crystal, per_site)
        close(loss.terms[kind], (sums / crystal.bincount()).mean())
    loss.loss.backward()
    check_gradients(model, theirs, "local", "local")
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith(("pre_pool", "global_level")))


def test_terms_site_by_site(model: SiteNet, theirs: Theirs) -> None:
    batch = theirs.batch()
    z = theirs["out/z_local"]
    source, target = batch.edge_index
    true = Constituents((batch.x, source), (batch.edge_dist[:, None], None))
    sets = [(true.parts, [(True, target, (1 + batch.edge_dist).pow(-2))])]
    sets += [(s.constituents.parts, [(False, s.target, s.weight)]) for s in theirs.local_false()]
    means = score_terms(model.local_level.critic, z, sets)
    for (mean, valid), name in zip(means, ("true", "false_both", "false_distances", "false_composition"), strict=True):
        assert valid.all()
        close(mean, theirs[f"parts/{name}"])


@pytest.mark.parametrize("engineered", [False, True])
def test_global_loss(model: SiteNet, theirs: Theirs, engineered: bool) -> None:
    name = "engineered" if engineered else "empty"
    with record(model, theirs.batch(), isolate=True) as tape:
        out = model(theirs.batch())
    close(out, theirs["out/global_rep"])
    loss = theirs.global_js(model, tape.records[1].z, engineered)
    close(loss, theirs[f"out/global_dim_loss_{name}"])
    loss.backward()
    check_gradients(model, theirs, "global", f"global_{name}")


def test_engineered_terms_of_the_crystal_level(model: SiteNet, theirs: Theirs) -> None:
    """Terms that both group by the crystal of the site, through the level itself."""
    with record(model, theirs.batch(), isolate=True) as tape:
        model(theirs.batch())
    crystal = theirs["in/batch_coo"]
    false = [
        FalseSample(kind, Constituents((theirs[f"engineered/{kind}"], None)), crystal, None, torch.arange(8))
        for kind in ("composition", "structure", "permuted")
    ]
    loss = model.global_level.loss(tape.records[1], false, kinds=())
    for kind, name in {"true": "true", **{f.kind: f"false_{f.kind}" for f in false}}.items():
        sums = torch.zeros(8, dtype=torch.float64).index_add(0, crystal, theirs[f"parts_global/{name}"])
        close(loss.terms[kind], (sums / crystal.bincount()).mean())


def test_noise_and_kl(model: SiteNet, theirs: Theirs) -> None:
    with record(model.train(), theirs.batch(), isolate=True) as tape:
        model(theirs.batch())
    local, crystal = tape.records
    close(model.local_level.noise(local.hidden), theirs["kl/local_log_var"])
    loss = model.local_level.loss(local, theirs.local_false(), kinds=(), noise=theirs["kl/local_noise"])
    close(loss.loss, theirs["kl/local_dim_loss"])
    close(loss.kl, theirs["kl/local_kl"])
    (loss.loss + 0.1 * loss.kl).backward()
    check_gradients(model, theirs, "local", "kl/local")
    log_variance = model.global_level.noise(crystal.hidden)
    js = theirs.global_js(model, perturb(crystal.z, log_variance, noise=theirs["kl/global_noise"]), engineered=True)
    kl = kl_term(crystal.z, log_variance).mean()
    close(js, theirs["kl/global_dim_loss"])
    close(kl, theirs["kl/global_kl"])
    (js + 0.1 * kl).backward()
    check_gradients(model, theirs, "global", "kl/global")


def test_kl_forms_agree_at_their_minimum() -> None:
    zero = torch.zeros(3, 4)
    for form in ("log_variance", "paper"):
        torch.testing.assert_close(kl_term(zero, zero, form), torch.ones(3))
