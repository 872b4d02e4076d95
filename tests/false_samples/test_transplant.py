from __future__ import annotations

import pytest
import torch

from pyg_dim.data.keys import SPECIES_KEYS
from pyg_dim.false_samples.transplant import donor_crystals, donor_sites, transplant

COUNTS = ([1], [4, 4], [4, 7], [2, 2, 2], [5, 5, 9], [9, 5, 5], [2, 2, 5, 9], [1, 2, 3, 4, 5], [3] * 5 + [8, 9, 9])


def composition(z: torch.Tensor) -> list[int]:
    return sorted(z.tolist())


@pytest.mark.parametrize("donors", ["matched", "any"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_donors_are_a_permutation_without_fixed_point(counts: list[int], donors: str) -> None:
    count = torch.tensor(counts)
    for seed in range(30):
        donor = donor_crystals(count, max(counts), donors=donors, generator=torch.Generator().manual_seed(seed))
        assert donor.sort().values.equal(torch.arange(len(counts)))
        if len(counts) > 1:
            assert (donor != torch.arange(len(counts))).all()


def test_matched_donors_have_the_same_count_where_there_is_one() -> None:
    count = torch.tensor([3, 3, 5, 5, 5, 8, 9])
    for seed in range(30):
        donor = donor_crystals(count, 9, generator=torch.Generator().manual_seed(seed))
        assert count[donor][:5].equal(count[:5])
        assert donor[5:].tolist() == [6, 5]


def test_a_lone_count_joins_its_neighbour() -> None:
    count = torch.tensor([3, 3, 4, 8, 8])
    for seed in range(30):
        donor = donor_crystals(count, 8, generator=torch.Generator().manual_seed(seed))
        assert set(donor[:2].tolist()) <= {0, 1}
        assert set(donor[2:].tolist()) == {2, 3, 4}


def test_every_donor_is_equally_likely() -> None:
    count = torch.full((4,), 6)
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(4, 4)
    for _ in range(3000):
        seen[torch.arange(4), donor_crystals(count, 6, generator=generator)] += 1
    assert seen.diagonal().sum() == 0
    assert (seen / 3000 - (1 - torch.eye(4)) / 3).abs().max() < 0.04


def test_unknown_kind(batch_of) -> None:
    with pytest.raises(ValueError, match="composition, polymorph"):
        transplant(batch_of(["NaCl", "ZnS"]), kinds=("substitution",))


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="matched, any"):
        donor_crystals(torch.tensor([1, 2]), 2, donors="best")


def test_equal_counts_hand_every_site_on_once(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "ZnS", "Si"])
    donor = donor_sites(batch, torch.tensor([1, 2, 0]), generator=generator)
    assert donor.sort().values.equal(torch.arange(6))


def test_unequal_counts_follow_the_formula(batch_of) -> None:
    batch = batch_of(["CaF2", "triclinic"])  # 3 and 7 sites
    for seed in range(20):
        donor = donor_sites(batch, torch.tensor([1, 0]), generator=torch.Generator().manual_seed(seed))
        u = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * torch.tensor([3, 7])
        few, many = torch.arange(3) + u[0], torch.arange(7) + u[1]
        assert donor[:3].tolist() == [3 + int(k * 7 / 3) % 7 for k in few]
        assert donor[3:].tolist() == [int(k * 3 / 7) % 3 for k in many]


def test_unequal_counts_hand_sites_on_as_evenly_as_can_be(batch_of) -> None:
    batch = batch_of(["CaF2", "triclinic"])
    for seed in range(20):
        donor = donor_sites(batch, torch.tensor([1, 0]), generator=torch.Generator().manual_seed(seed))
        assert len(set(donor[:3].tolist())) == 3
        assert sorted(donor[3:].bincount(minlength=3).tolist()) in ([2, 2, 3],)


def test_geometry_is_kept_and_species_move_together(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "ZnS", "TiO2", "CaTiO3", "Cu"])
    false = transplant(batch, generator=generator).batch
    for key in ("pos", "cell", "ptr", "batch", "edge_index", "edge_dist", "edge_shift"):
        assert false[key] is batch[key]
    site = dict(zip(batch.z.tolist(), batch.x, strict=True))
    assert all(torch.equal(x, site[z]) for z, x in zip(false.z.tolist(), false.x, strict=True))
    assert {key for key in SPECIES_KEYS if key in batch and false[key] is batch[key]} == set()


def test_composition_is_the_donors(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "ZnS", "Si"])
    corruption = transplant(batch, generator=generator)
    polymorph = corruption.kinds[1]
    for b in range(3):
        donor = polymorph.crystal_target[b]
        assert composition(corruption.batch.z[batch.batch == b]) == composition(batch.z[batch.batch == donor])


def test_masks_are_exactly_the_pairs_that_occur(batch_of, generator) -> None:
    """Against a search over every pair, one by one."""
    batch = batch_of(["NaCl", "ZnS", "Si", "CaTiO3", "triclinic"], sites=30)
    corruption = transplant(batch, generator=generator)
    source, target = batch.edge_index
    true = list(zip(target.tolist(), batch.z[source].tolist(), batch.edge_dist.tolist(), strict=True))
    by_site: dict[int, list[tuple[int, float]]] = {}
    for site, z, d in true:
        by_site.setdefault(site, []).append((z, d))
    for kind in corruption.kinds:
        scored = kind.site_target[target].tolist()
        false = zip(scored, corruption.batch.z[source].tolist(), batch.edge_dist.tolist(), strict=True)
        occurs = [any(z == z_ and abs(d - d_) < 1e-3 for z_, d_ in by_site[site]) for site, z, d in false]
        assert kind.keep_edges.tolist() == [not o for o in occurs], kind.name


def test_polymorph_masks_the_self_pair(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "ZnS", "CaTiO3", "TiO2"])
    polymorph = transplant(batch, kinds=("polymorph",), generator=generator).kinds[0]
    assert not polymorph.keep_edges[batch.edge_dist == 0].any()
    assert polymorph.keep_edges.any()


def test_composition_masks_pairs_of_equal_species(batch_of, generator) -> None:
    batch = batch_of(["CaTiO3", "CaTiO3", "TiO2", "ZnS"])
    corruption = transplant(batch, kinds=("composition",), generator=generator)
    source, _ = batch.edge_index
    equal = (corruption.batch.z == batch.z)[source]
    assert equal.any()
    assert not corruption.kinds[0].keep_edges[equal].any()


def test_equal_crystals_are_masked_at_the_crystal_level(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "NaCl"])
    for kind in transplant(batch, generator=generator).kinds:
        assert not kind.keep_sites.any(), kind.name


def test_single_element_crystals(batch_of, relabelled, generator) -> None:
    germanium = relabelled("Si", [32, 32])
    same = transplant(batch_of(["Si", "Si", "Si"]), generator=generator)
    assert not any(kind.keep_sites.any() for kind in same.kinds)
    different = transplant(batch_of(["Si", germanium]), generator=generator)
    assert all(kind.keep_sites.all() for kind in different.kinds[:1])


def test_a_batch_of_one_crystal_masks_everything(batch_of, generator) -> None:
    corruption = transplant(batch_of(["CaTiO3"]), generator=generator)
    for kind in corruption.kinds:
        assert not kind.keep_sites.any()
        assert not kind.keep_edges.any()


def test_no_equal_site_counts(batch_of, generator) -> None:
    batch = batch_of(["Cu", "NaCl", "CaF2", "CaTiO3", "TiO2", "triclinic"])
    corruption = transplant(batch, generator=generator)
    donor = corruption.kinds[1].crystal_target
    assert (donor != torch.arange(6)).all()
    assert all(kind.keep_sites.any() for kind in corruption.kinds)


def test_polymorph_target_is_the_site_that_gave_the_species(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "ZnS", "CaTiO3", "TiO2"])
    corruption = transplant(batch, generator=generator)
    polymorph = corruption.kinds[1]
    assert batch.z[polymorph.site_target].equal(corruption.batch.z)
    assert batch.batch[polymorph.site_target].equal(polymorph.crystal_target[batch.batch])


def test_same_seed_same_samples(batch_of) -> None:
    batch = batch_of(["NaCl", "ZnS", "CaTiO3", "TiO2"])
    a, b = (transplant(batch, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert a.batch.z.equal(b.batch.z)
