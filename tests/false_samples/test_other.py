from __future__ import annotations

import torch

from pyg_dim.false_samples.other import other_targets


def test_sends_every_group_once_and_none_to_itself() -> None:
    target, valid = other_targets(50, None, device=torch.device("cpu"))
    assert valid.all()
    assert target.sort().values.equal(torch.arange(50))


def test_uniform_over_the_groups_of_other_crystals() -> None:
    crystal = torch.tensor([0, 0, 0, 1, 2, 2])
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(6, 6)
    for _ in range(6000):
        target, valid = other_targets(6, crystal, device=torch.device("cpu"), generator=generator)
        counts[torch.arange(6)[valid], target[valid]] += 1
    same = crystal[:, None] == crystal
    assert (counts[same] == 0).all()
    share = counts / counts.sum(1, keepdim=True)
    expected = (~same).float() / (~same).sum(1, keepdim=True)
    assert (share - expected).abs().max() < 0.04


def test_one_crystal_has_no_other() -> None:
    _, valid = other_targets(4, torch.zeros(4, dtype=torch.long), device=torch.device("cpu"))
    assert not valid.any()


def test_one_group_has_no_other() -> None:
    target, valid = other_targets(1, None, device=torch.device("cpu"))
    assert target.tolist() == [0]
    assert not valid.any()


def test_same_seed_same_targets() -> None:
    a, b = (
        other_targets(20, None, device=torch.device("cpu"), generator=torch.Generator().manual_seed(3))[0]
        for _ in range(2)
    )
    assert a.equal(b)
