"""A small data set on disk, and options that train a small encoder on it in about a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyg_dim.data.elements import symbols
from pyg_dim.training.options import TrainOptions

CATIONS, ANIONS = (3, 11, 19, 37, 12, 20), (9, 17, 35, 8, 16)
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


@pytest.fixture(scope="session")
def parquet(crystals, tmp_path_factory):
    """Path of 60 binary crystals of two prototypes with the labels "energy" (one missing), "rare" and "empty"."""
    chosen = [replace(crystals[name], z=np.array([a, x])) for name in ("NaCl", "ZnS") for a in CATIONS for x in ANIONS]
    energy = [float(c.z[0] - 0.5 * c.z[1]) for c in chosen]
    path = tmp_path_factory.mktemp("data") / "binaries.parquet"
    names = symbols()
    table = {
        "immutable_id": [f"c{row}" for row in range(len(chosen))],
        "lattice_vectors": [c.cell.tolist() for c in chosen],
        "species_at_sites": [[names[z] for z in c.z] for c in chosen],
        "cartesian_site_positions": [c.positions().tolist() for c in chosen],
        "energy": [None, *energy[1:]],
        "rare": [1.0 if row < 20 else None for row in range(len(chosen))],
        "empty": pa.array([None] * len(chosen), pa.float64()),
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def options(parquet, tmp_path):
    """``options(epochs=3, ...)``: options of a run of a second or two in a folder of its own."""

    def make(**changes):
        values = {
            "data": str(parquet), "epochs": 2, "batch_sites": 24, "lr": 1e-3, "accelerator": "cpu", "compile": False,
            "logdir": str(tmp_path / "runs"), "val_fraction": 0.2, "encoder": dict(TINY),
        }  # fmt: skip
        return TrainOptions(**(values | changes))

    return make
