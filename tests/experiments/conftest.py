"""A small data set on disk with the labels of the studies, a trained encoder, and a study that takes seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.elements import symbols
from pyg_dim.experiments.formula_study import FormulaStudy
from pyg_dim.experiments.scales import FORMULA_PRETRAINING, FORMULA_SCALES, RECIPES, Scale
from pyg_dim.experiments.study import FORMATION, GAP, Study
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.run import train

CATIONS, ANIONS = (3, 11, 19, 37, 55, 12, 20, 38, 56, 30), (9, 17, 35, 8, 16, 34)
TINY = {
    "site_channels": 8,
    "pair_channels": 8,
    "attention_hidden": [8],
    "value_hidden": [8],
    "local_channels": 8,
    "pre_pool": [8],
    "post_pool": [8, 8],
    "supercell_sites": 8,
}


ROOST = {"site_channels": 8, "layers": 1, "heads": 1, "hidden_channels": 8, "trunk": [8], "crystal_channels": 8}


@dataclass(frozen=True)
class Run:
    """A finished run, and the parameters that it began with."""

    checkpoint: Path
    initial: dict[str, Tensor]


@pytest.fixture(scope="session")
def parquet(crystals, tmp_path_factory):
    """Path of 120 binary crystals, each formula in two prototypes, with formation energies and (not all) band gaps."""
    chosen = [replace(crystals[name], z=np.array([a, x])) for name in ("NaCl", "ZnS") for a in CATIONS for x in ANIONS]
    z = np.array([crystal.z for crystal in chosen])
    names = symbols()
    table = {
        "immutable_id": [f"c{row}" for row in range(len(chosen))],
        "lattice_vectors": [c.cell.tolist() for c in chosen],
        "species_at_sites": [[names[number] for number in c.z] for c in chosen],
        "cartesian_site_positions": [c.positions().tolist() for c in chosen],
        FORMATION: (0.1 * z[:, 0] - z[:, 1] + 0.5 * (np.arange(len(z)) >= len(z) // 2)).tolist(),
        GAP: pa.array([None if row % 4 == 3 else float(z[row, 1]) for row in range(len(z))], pa.float64()),
    }
    path = tmp_path_factory.mktemp("data") / "binaries.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="session")
def dataset(parquet) -> CrystalDataset:
    """The crystals of ``parquet``."""
    return CrystalDataset.from_parquet(parquet)


@pytest.fixture(scope="session")
def finished(parquet, tmp_path_factory) -> Run:
    """A run of one epoch with a small encoder, which learns fingerprints, too."""
    initial = {}

    def on_train_start(module):
        initial.update({name: value.clone() for name, value in module.encoder.state_dict().items()})

    options = TrainOptions(
        data=str(parquet), epochs=1, batch_sites=48, lr=1e-2, accelerator="cpu", compile=False, val_fraction=0.0,
        logdir=str(tmp_path_factory.mktemp("runs")), name="tiny", seed=3, encoder=dict(TINY),
        objective="deep_infomax+fingerprint",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_start", on_train_start)
        directory = train(options).directory
    return Run(directory / "last.ckpt", initial)


@pytest.fixture
def study(parquet, tmp_path, monkeypatch) -> Study:
    """A study of ``parquet`` with small encoders, in a folder of its own."""
    tiny = {"lr": 1e-2, "schedule": "cosine", "batch_sites": 48, "compile": False, "accelerator": "cpu"}
    for name in RECIPES:
        monkeypatch.setitem(RECIPES, name, tiny | {"encoder": dict(TINY)})
    scale = Scale(
        crystals=None, epochs=1, more_epochs=1, ablation_crystals=40, ablation_epochs=1, lever_epochs=1,
        supervised_epochs=1, draws=2, transfer_draws=1, pool=40, tsne_crystals=11,
    )  # fmt: skip
    return Study(data=str(parquet), phonons=str(parquet), directory=tmp_path / "out", scale=scale)


@pytest.fixture
def formulas(parquet, tmp_path, monkeypatch) -> FormulaStudy:
    """A study of one set of 312 formulas, the size of Matbench's steels, of which the pool holds many."""
    monkeypatch.setitem(FORMULA_PRETRAINING, "encoder", ROOST)
    monkeypatch.setitem(FORMULA_PRETRAINING, "accelerator", "cpu")
    monkeypatch.setitem(RECIPES, "dim", {"encoder": dict(TINY), "batch_sites": 48, "accelerator": "cpu"})
    cations, anions = ("Li", "Na", "K", "Mg", "Ca", "Al"), ("F", "Cl", "Br", "O", "S", "N")
    names = [f"{a}{k}{x}{m}" for a in cations for x in anions for k in (1, 2, 3) for m in (1, 2, 4)][:312]
    label = [float(row % 7 + row // 52) for row in range(len(names))]
    pd.DataFrame({"formula": names, "target": label}).to_csv(tmp_path / "matbench_steels.csv", index=False)
    pool = [f"{a}{k}{x}5" for a in cations for x in anions for k in (1, 2, 3)]
    pd.DataFrame({"composition": [*pool, *names[::2]]}).to_csv(tmp_path / "pool.csv", index=False)
    scale = replace(
        FORMULA_SCALES["smoke"], formulas=150, structures=None, sizes=(20,), curve_folds=1, tsne_formulas=12
    )
    return FormulaStudy(
        compositions=str(tmp_path), pool=str(tmp_path / "pool.csv"), structures=str(parquet), sets=("steels",),
        scale=scale, directory=tmp_path / "out", split="all",
    )  # fmt: skip
