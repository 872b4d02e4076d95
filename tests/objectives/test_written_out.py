"""The whole objective against eq. 6 written out: every pair, every site, every crystal, in plain loops."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch.nn import functional as F

from pyg_dim.false_samples.other import other_targets
from pyg_dim.models import SiteNet
from pyg_dim.objectives import DeepInfoMax

BATCHES = {
    "different": ["NaCl", "ZnS", "CaTiO3", "triclinic", "Cu"],
    "with doubles": ["NaCl", "Si", "NaCl", "CaF2", "Si"],
    "two": ["CaTiO3", "TiO2"],
}
SMALL = {"site_channels": 6, "pair_channels": 5, "local_channels": 7, "pre_pool": [6], "post_pool": [6, 8]}


def score(critic, z, c) -> torch.Tensor:
    u_z = critic.z_score(F.mish(critic.z_hidden(z)))
    return u_z @ critic.c_score(F.mish(critic.c_hidden(c)))


def weighted_mean(terms: list[tuple[float, torch.Tensor]]) -> torch.Tensor | None:
    weight = sum(w for w, _ in terms)
    return sum(w * t for w, t in terms) / weight if terms and weight else None


def loss_of(groups: dict[str, dict[int, list]], kinds: list[str], crystal_of: list[int]) -> torch.Tensor:
    per_crystal = defaultdict(list)
    for g, crystal in enumerate(crystal_of):
        false = [m for k in kinds if (m := weighted_mean(groups[k][g])) is not None]
        true = weighted_mean(groups["true"][g])
        if true is not None and false:
            per_crystal[crystal].append(true + sum(false) / len(false))
    return sum(sum(v) / len(v) for v in per_crystal.values()) / len(per_crystal)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("names", BATCHES)
def test_loss_is_the_paper_written_out(batch_of, names: str, weighted: bool) -> None:
    batch = batch_of(BATCHES[names], sites=16)
    encoder = SiteNet(**SMALL, supercell_sites=16, distance_weights=weighted).double()
    objective = DeepInfoMax(encoder).eval()
    losses = objective(batch, torch.Generator().manual_seed(5))

    # The same draws, in the order of the objective: transplant, permutation, then `other` of each level.
    generator = torch.Generator().manual_seed(5)
    transplanted, permuted = objective.corruptions(batch, generator)
    crystal, num_sites, num_crystals = batch.batch.tolist(), batch.z.numel(), batch.num_graphs
    other_site = other_targets(num_sites, batch.batch, device=batch.z.device, generator=generator)[0].tolist()
    other_crystal = other_targets(num_crystals, None, device=batch.z.device, generator=generator)[0].tolist()
    composition, polymorph = transplanted.kinds
    assert composition.site_target.tolist() == list(range(num_sites))
    donor_site, donor = polymorph.site_target.tolist(), polymorph.crystal_target.tolist()

    source, target = batch.edge_index.tolist()
    distance = batch.edge_dist.tolist()
    site, site_t, site_p = (encoder.represent(b).site for b in (batch, transplanted.batch, permuted.batch))
    z = encoder.represent(batch)

    def environment(b, i: int) -> list[tuple[int, float]]:
        return sorted((int(b.z[j]), d) for j, k, d in zip(source, target, distance, strict=True) if k == i)

    true_environment = [environment(batch, i) for i in range(num_sites)]

    def pair_occurs(i: int, species: int, d: float) -> bool:
        return any(species == s and abs(d - d_) < 1e-3 for s, d_ in true_environment[i])

    def site_occurs(b, i: int, c: int) -> bool:
        mine = environment(b, i)
        return any(
            b.z[i] == batch.z[k]
            and all(s == s_ and abs(d - d_) < 1e-3 for (s, d), (s_, d_) in zip(mine, true_environment[k], strict=True))
            for k in range(num_sites)
            if crystal[k] == c and len(true_environment[k]) == len(mine)
        )

    local: dict[str, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    critic = encoder.local_level.critic
    for e, (j, i, d) in enumerate(zip(source, target, distance, strict=True)):
        w = 1 / (1 + d) ** 2 if weighted else 1.0
        true = torch.cat([batch.x[j], batch.edge_dist[e : e + 1]])
        false = torch.cat([transplanted.batch.x[j], batch.edge_dist[e : e + 1]])
        species = int(transplanted.batch.z[j])
        local["true"][i].append((w, F.softplus(-score(critic, z.site[i], true))))
        if crystal[other_site[i]] != crystal[i]:
            local["other"][other_site[i]].append((w, F.softplus(score(critic, z.site[other_site[i]], true))))
        for kind, t in (("composition", i), ("polymorph", donor_site[i])):
            if not pair_occurs(t, species, d):
                local[kind][t].append((w, F.softplus(score(critic, z.site[t], false))))
    expected = loss_of(local, ["other", "composition", "polymorph"], crystal)
    torch.testing.assert_close(losses["js/local"], expected.detach(), rtol=1e-10, atol=1e-10)

    sites: dict[str, dict[int, list]] = defaultdict(lambda: defaultdict(list))
    critic = encoder.global_level.critic
    for i, c in enumerate(crystal):
        sites["true"][c].append((1.0, F.softplus(-score(critic, z.crystal[c], site[i]))))
        sites["other"][other_crystal[c]].append((1.0, F.softplus(score(critic, z.crystal[other_crystal[c]], site[i]))))
        for kind, b, vectors, t in (
            ("composition", transplanted.batch, site_t, c),
            ("polymorph", transplanted.batch, site_t, donor[c]),
            ("permutation", permuted.batch, site_p, c),
        ):
            if not site_occurs(b, i, t):
                sites[kind][t].append((1.0, F.softplus(score(critic, z.crystal[t], vectors[i]))))
    expected = loss_of(sites, ["other", "composition", "polymorph", "permutation"], list(range(num_crystals)))
    torch.testing.assert_close(losses["js/global"], expected.detach(), rtol=1e-10, atol=1e-10)

    parts = (
        losses[f"{term}/{where}"] * share for term, share in (("js", 1.0), ("kl", 0.1)) for where in ("local", "global")
    )
    torch.testing.assert_close(losses["total"].detach(), sum(parts))
