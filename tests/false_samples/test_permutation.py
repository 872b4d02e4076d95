from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pyg_dim.false_samples.permutation import permutation


def test_composition_of_every_crystal_is_kept(batch_of, generator) -> None:
    batch = batch_of(["NaCl", "CaTiO3", "TiO2", "triclinic"])
    false = permutation(batch, generator=generator).batch
    for b in range(4):
        mine = batch.batch == b
        assert sorted(false.z[mine].tolist()) == sorted(batch.z[mine].tolist())
    assert false.pos is batch.pos


def test_every_permutation_is_equally_likely(batch_of) -> None:
    batch, generator = batch_of(["triclinic"]), torch.Generator().manual_seed(0)
    seen = torch.zeros(7)
    for _ in range(2000):
        seen[(permutation(batch, generator=generator).batch.z == 26).nonzero()] += 1
    assert (seen / 2000 - 1 / 7).abs().max() < 0.03


def test_rock_salt_is_always_masked(batch_of) -> None:
    """Exchanging the species of rock salt gives rock salt: same crystal, other origin."""
    batch = batch_of(["NaCl", "CaTiO3"])
    masked = changed = 0
    for seed in range(20):
        corruption = permutation(batch, generator=torch.Generator().manual_seed(seed))
        changed += int(corruption.batch.z[0] != batch.z[0])
        masked += int((~corruption.kinds[0].keep_sites[:2]).all())
    assert changed > 0
    assert masked == 20


def test_single_element_crystals_are_masked(batch_of, generator) -> None:
    assert not permutation(batch_of(["Cu", "Si"]), generator=generator).kinds[0].keep_sites.any()


def test_what_symmetry_does_not_undo_is_kept(batch_of) -> None:
    """Perovskite with Ca and O exchanged is another crystal, with Ca and Ti exchanged it is one too."""
    batch = batch_of(["CaTiO3"])
    for seed in range(20):
        corruption = permutation(batch, generator=torch.Generator().manual_seed(seed))
        keep = corruption.kinds[0].keep_sites
        if corruption.batch.z.equal(batch.z):
            assert not keep.any()
        elif (corruption.batch.z == 8).equal(batch.z == 8):
            assert keep[:2].all()
        else:
            assert keep.any()


def test_mask_does_not_depend_on_small_noise(batch_of, crystals, generator) -> None:
    """Relaxed cells are symmetric only nearly: a shift of 1e-4 angstrom does not make a false sample."""
    noisy = replace(
        crystals["NaCl"], fractional=crystals["NaCl"].fractional + np.array([[0, 0, 0], [2e-5, -1e-5, 1e-5]])
    )
    assert not permutation(batch_of([noisy]), generator=generator).kinds[0].keep_sites.any()


def test_only_crystal_levels(batch_of, generator) -> None:
    kind = permutation(batch_of(["CaTiO3"]), generator=generator).kinds[0]
    assert kind.site_target is None
    assert kind.edge_species is None
