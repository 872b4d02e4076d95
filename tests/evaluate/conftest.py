from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.report import ImportReport

ROCK_SALT = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]


def binary_crystals(crystals: int, labels: dict[str, torch.Tensor] | None = None) -> CrystalDataset:
    """AB crystals of the rock-salt and caesium-chloride kind with random elements and edges."""
    generator = torch.Generator().manual_seed(0)
    z = torch.stack(
        [
            torch.randint(3, 57, (crystals,), generator=generator),
            torch.tensor([8, 9, 16, 17, 7, 35])[torch.randint(6, (crystals,), generator=generator)],
        ],
        dim=1,
    ).flatten()
    edge = 3 + torch.rand(crystals, generator=generator)
    cell = edge[:, None, None] * torch.eye(3)
    pos = (torch.tensor(ROCK_SALT) @ cell).reshape(-1, 3)
    return CrystalDataset(
        z=z,
        pos=pos,
        ptr=torch.arange(0, 2 * crystals + 1, 2),
        cell=cell,
        oxidation=torch.zeros(2 * crystals),
        labels=labels or {},
        ids=pa.array([f"crystal-{row}" for row in range(crystals)]),
        report=ImportReport("test crystals", crystals),
    )


@pytest.fixture
def crystals() -> CrystalDataset:
    return binary_crystals(60)
