"""Small crystals of our own making, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.elements import site_features
from pyg_dim.data.graphs import DenseSupercell


@dataclass(frozen=True)
class Crystal:
    """A cell (rows, angstrom), fractional positions and atomic numbers."""

    cell: np.ndarray
    fractional: np.ndarray
    z: np.ndarray

    def positions(self) -> np.ndarray:
        return self.fractional @ self.cell


def _crystal(cell: object, sites: Sequence[tuple[int, Sequence[float]]]) -> Crystal:
    return Crystal(
        np.array(cell, dtype=float), np.array([f for _, f in sites], dtype=float), np.array([z for z, _ in sites])
    )


def _fcc(a: float) -> list[list[float]]:
    return [[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]


CRYSTALS = {
    "Cu": _crystal(_fcc(3.61), [(29, (0, 0, 0))]),
    "Si": _crystal(_fcc(5.43), [(14, (0, 0, 0)), (14, (0.25, 0.25, 0.25))]),
    "NaCl": _crystal(_fcc(5.64), [(11, (0, 0, 0)), (17, (0.5, 0.5, 0.5))]),
    "ZnS": _crystal(_fcc(5.41), [(30, (0, 0, 0)), (16, (0.25, 0.25, 0.25))]),
    "CaF2": _crystal(_fcc(5.46), [(20, (0, 0, 0)), (9, (0.25, 0.25, 0.25)), (9, (0.75, 0.75, 0.75))]),
    "CaTiO3": _crystal(
        np.eye(3) * 3.84,
        [(20, (0, 0, 0)), (22, (0.5, 0.5, 0.5)), (8, (0, 0.5, 0.5)), (8, (0.5, 0, 0.5)), (8, (0.5, 0.5, 0))],
    ),
    "TiO2": _crystal(
        np.diag([4.59, 4.59, 2.96]),
        [
            (22, (0, 0, 0)),
            (22, (0.5, 0.5, 0.5)),
            *((8, f) for f in ((0.305, 0.305, 0), (0.695, 0.695, 0), (0.195, 0.805, 0.5), (0.805, 0.195, 0.5))),
        ],
    ),
    "triclinic": _crystal(
        [[4.1, 0.3, 0.2], [-0.7, 5.2, 0.4], [0.5, -0.6, 6.3]],
        [(3, (0.02, 0.11, 0.07)), (8, (0.41, 0.22, 0.35)), (15, (0.77, 0.63, 0.81)), (8, (0.28, 0.71, 0.56)),
         (26, (0.55, 0.91, 0.14)), (8, (0.88, 0.35, 0.47)), (3, (0.15, 0.48, 0.83))],
    ),
}  # fmt: skip


def make_batch(crystals: Sequence[Crystal | str], dtype: torch.dtype = torch.float64, sites: int = 50) -> CrystalBatch:
    """A batch with dense supercell graphs."""
    chosen = [CRYSTALS[c] if isinstance(c, str) else c for c in crystals]
    counts = torch.tensor([len(c.z) for c in chosen])
    z = torch.from_numpy(np.concatenate([c.z for c in chosen]))
    oxidation = torch.zeros(len(z), dtype=dtype)
    batch = CrystalBatch(
        z=z,
        pos=torch.from_numpy(np.concatenate([c.positions() for c in chosen])).to(dtype),
        cell=torch.from_numpy(np.stack([c.cell for c in chosen])).to(dtype),
        x=site_features(z, oxidation, dtype),
        oxidation=oxidation,
        batch=torch.repeat_interleave(counts),
        ptr=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        max_sites=int(counts.max()),
        row=torch.arange(len(chosen)),
    )
    return DenseSupercell(sites)(batch)


@pytest.fixture(scope="session")
def crystals() -> dict[str, Crystal]:
    """Hand-made crystals by name: Cu, Si, NaCl, ZnS, CaF2, CaTiO3, TiO2, triclinic."""
    return CRYSTALS


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., CrystalBatch]:
    """``batch_of(["NaCl", ...], dtype, sites)``: a batch of crystals, by name or as they are."""
    return make_batch


@pytest.fixture(scope="session")
def relabelled() -> Callable[..., Crystal]:
    """``relabelled("NaCl", z)``: the crystal with other atomic numbers."""
    return lambda name, z: replace(CRYSTALS[name], z=np.array(z))


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers that are the same in every run."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
