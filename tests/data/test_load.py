import subprocess
import sys

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pyg_dim.data import load_dataset

CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_every_kind_of_source(tmp_path, dataset):
    (tmp_path / "cifs").mkdir()
    CSCL.to(str(tmp_path / "cifs" / "a.cif"))
    assert load_dataset(tmp_path / "cifs").ids.to_pylist() == ["a"]

    dataset.to_parquet(tmp_path / "t.parquet")
    assert len(load_dataset(str(tmp_path / "t.parquet"), dtype=torch.float64)) == 12
    assert len(load_dataset(tmp_path)) == 12

    assert len(load_dataset("prototypes")) == 3000


def test_limits_and_types_are_passed_on(tmp_path, dataset):
    dataset.to_parquet(tmp_path / "t.parquet")
    small = load_dataset(tmp_path / "t.parquet", max_sites=2, dtype=torch.float64)
    assert small.pos.dtype == torch.float64
    assert int(small.num_sites.max()) == 2
    assert np.unique(list(small.report.counts())).tolist() == ["more than 2 sites"]


def test_a_wrong_source_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*'prototypes'"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no CIF file"):
        load_dataset(tmp_path)
    (tmp_path / "x.pdb").write_text("")
    with pytest.raises(ValueError, match=r"x\.pdb: unknown format; known are \.cif"):
        load_dataset(tmp_path / "x.pdb")


def test_reading_parquet_needs_no_structure_library(tmp_path, dataset):
    dataset.to_parquet(tmp_path / "t.parquet")
    program = (
        "import sys\n"
        "from pyg_dim.data import CrystalLoader, DenseSupercell, load_dataset, split\n"
        "dataset = load_dataset(sys.argv[1])\n"
        "batch = next(iter(CrystalLoader(dataset.subset(split(dataset)[0]), DenseSupercell())))\n"
        "assert batch.edge_dist.numel()\n"
        "found = {'pymatgen', 'ase', 'spglib', 'lightning', 'matplotlib'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "t.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert done.returncode == 0, done.stderr
