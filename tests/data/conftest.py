from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.raw import RawCrystals
from pyg_dim.data.report import ImportReport

SHARED = Path(__file__).parents[2] / "../shared"


@pytest.fixture
def shared():
    """Folder of parity fixtures and real data, which is not part of the repository."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not there: parity data lie outside the repository")
        return path

    return find


def _lay_out(crystals, labels=None):
    """RawCrystals from (atomic numbers, positions, cell) triples."""
    counts = np.array([len(z) for z, _, _ in crystals])
    return RawCrystals(
        ids=pa.array([f"c{k}" for k in range(len(crystals))]),
        species_counts=counts,
        position_counts=counts.copy(),
        z=np.concatenate([np.asarray(z, dtype=np.int64) for z, _, _ in crystals]),
        pos=np.concatenate([np.asarray(pos, dtype=np.float64).reshape(-1, 3) for _, pos, _ in crystals]),
        cell=np.stack([np.asarray(cell, dtype=np.float64) for _, _, cell in crystals]),
        labels={} if labels is None else labels,
    )


@pytest.fixture
def lay_out():
    return _lay_out


@pytest.fixture
def random_crystal():
    return _random_crystal


@pytest.fixture
def random_rotation():
    def rotation(rng):
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        return q * np.sign(np.linalg.det(q))

    return rotation


@pytest.fixture
def make_dataset():
    def make(crystals, labels=None, dtype=torch.float64):
        raw = _lay_out(crystals, labels)
        return CrystalDataset.from_raw(raw, ImportReport("test", len(crystals)), dtype=dtype)

    return make


def _random_crystal(rng, num_sites, spread=0.35, elements=(3, 8, 11, 14, 17, 26, 56)):
    """A crystal in a skewed, triclinic cell."""
    cell = np.diag(rng.uniform(3, 7, 3)) + rng.normal(0, spread, (3, 3)) * 5
    while abs(np.linalg.det(cell)) < 4 * num_sites:
        cell *= 1.3
    return rng.choice(elements, num_sites), rng.uniform(0, 1, (num_sites, 3)) @ cell, cell


HIGH_SYMMETRY = {
    "simple cubic": 4.0 * np.eye(3),
    "fcc": 2.8 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    "bcc": 1.9 * np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]]),
    "hexagonal": np.array([[3.2, 0, 0], [-1.6, 1.6 * 3**0.5, 0], [0, 0, 5.2]]),
    "tetragonal": np.diag([3.9, 3.9, 11.0]),
}


@pytest.fixture(params=list(HIGH_SYMMETRY))
def symmetric_crystal(request):
    """Two sites in a cell with many equal lengths, where a choice by rounding errors would show."""
    cell = HIGH_SYMMETRY[request.param]
    return np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]) @ cell, cell


@pytest.fixture
def dataset(make_dataset):
    """Twelve crystals of one to nine sites with two labels, one of them partly missing."""
    rng = np.random.default_rng(0)
    crystals = [_random_crystal(rng, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 2, 4)]
    labels = {"energy": rng.normal(size=12), "gap": np.where(np.arange(12) % 3 == 0, np.nan, 1.0)}
    return make_dataset(crystals, labels)
