import builtins
import json
import sys
import types

import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data import load_dataset

CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def install(monkeypatch, load):
    package, module = types.ModuleType("matminer"), types.ModuleType("matminer.datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "matminer", package)
    monkeypatch.setitem(sys.modules, "matminer.datasets", module)


def test_a_downloaded_file_in_the_working_directory(tmp_path):
    content = {"index": ["mb-1"], "columns": ["structure", "e_form"], "data": [[CSCL.as_dict(), -1.0]]}
    (tmp_path / "matbench_mp_e_form.json").write_text(json.dumps(content))
    dataset = load_dataset("matbench_mp_e_form")
    assert dataset.ids.to_pylist() == ["mb-1"]
    assert dataset.target("e_form").tolist() == [-1]


def test_through_matminer(monkeypatch):
    table = pd.DataFrame({"structure": [CSCL, CSCL], "e_form": [-1.0, 2.0]})
    install(monkeypatch, lambda name: table if name == "matbench_mp_e_form" else None)
    dataset = load_dataset("matbench_mp_e_form")
    assert dataset.ids.to_pylist() == ["0", "1"]
    assert dataset.target("e_form").tolist() == [-1, 2]
    assert dataset.report.source == "matbench_mp_e_form"


def test_without_matminer_and_without_a_network(monkeypatch):
    found = builtins.__import__

    def absent(name, *rest):
        if name.startswith("matminer"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    message = r"no matbench_mp_gap\.json\.gz in .*download matbench_mp_gap\.json\.gz.*working directory, or install"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset("matbench_mp_gap")
    monkeypatch.undo()

    def fail(name):
        raise ConnectionError("no route to host")

    install(monkeypatch, fail)
    with pytest.raises(FileNotFoundError, match=r"could not fetch it \(no route to host\); download matbench_phonons"):
        load_dataset("matbench_phonons")


def test_other_names():
    with pytest.raises(ValueError, match=r"matbench_steels has compositions but no structures"):
        load_dataset("matbench_steels")
    with pytest.raises(ValueError, match=r"unknown Matbench task matbench_superconductors; known: matbench_dielectric"):
        load_dataset("matbench_superconductors")
