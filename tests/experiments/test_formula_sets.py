"""The composition sets, and what proves that files, order and folds are the official ones."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pyg_dim.experiments import formula_published as published
from pyg_dim.experiments.formula_sets import SETS, load_set, mean_sites
from pyg_dim.experiments.tasks import ALL, FOLDS, cross_task

SHARED = Path(__file__).parents[2] / "../shared"
PAPER_IS_WRONG = {"perovskites": (0.5660, 0.0048)}


def official(name):
    """The set with its folds; skips where the files are not there."""
    folder = SHARED / "data/compositions"
    if not folder.exists():
        pytest.skip(f"{folder.name} is not there: real data lie outside the repository")
    return cross_task(name, load_set(name, folder), SETS[name].label, "matbench")


@pytest.mark.parametrize("name", SETS)
def test_the_mean_of_the_labels_has_the_error_in_print(name):
    """To the last digit: so data, order and folds are the paper's."""
    task = official(name)
    values = task.dataset.target(task.target).numpy()
    draws = [task.draw(ALL, k) for k in range(FOLDS)]
    assert sum(draw.test.numel() for draw in draws) == SETS[name].rows
    errors = [np.abs(values[d.test.numpy()] - values[d.rows.numpy()].mean()).mean() for d in draws]
    printed = published.FROZEN[name]["dummy"].split(" ± ")
    for found, text, real in zip(
        (np.mean(errors), np.std(errors)), printed, PAPER_IS_WRONG.get(name, (None, None)), strict=True
    ):
        digits = len(text.partition(".")[2])
        assert f"{found:.{digits}f}" == (text if real is None else f"{real:.{digits}f}")


@pytest.mark.parametrize("name", SETS)
def test_folds_made_by_seed_are_the_official_ones(name):
    task = official(name)
    path = SHARED / "fixtures/matbench_folds.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not there: parity data lie outside the repository")
    with np.load(path) as folds:
        (key,) = (key for key in folds if key.removeprefix("matbench_") == name)
        for number, (train, test) in enumerate(task.folds):
            assert np.array_equal(test.numpy(), np.flatnonzero(folds[key] == number))
            assert np.array_equal(train.numpy(), np.flatnonzero(folds[key] != number))


@pytest.mark.parametrize("table", [published.FINE_TUNED, published.FROZEN])
def test_numbers_in_print_are_of_the_sets(table):
    assert table.keys() == SETS.keys()
    assert all(" ± " in cell for cells in table.values() for cell in cells.values())


def test_a_file_with_other_rows_is_refused(tmp_path):
    pd.DataFrame({"formula": ["NaCl", "KCl"], "target": [1.0, 2.0]}).to_csv(tmp_path / "matbench_steels.csv")
    with pytest.raises(ValueError, match="matbench_steels has 312 formulas"):
        load_set("steels", tmp_path)
    with pytest.raises(ValueError, match="unknown set 'iron'"):
        load_set("iron", tmp_path)


def test_a_set_without_a_file_comes_from_matminer(tmp_path, monkeypatch):
    structures = [SimpleNamespace(composition=SimpleNamespace(formula=f"Na{k + 1} Cl1")) for k in range(636)]
    table = pd.DataFrame({"structure": structures, "exfoliation_en": np.arange(636.0)})
    module = ModuleType("matminer.datasets")
    module.load_dataset = {"matbench_jdft2d": table}.__getitem__
    monkeypatch.setitem(sys.modules, "matminer", ModuleType("matminer"))
    monkeypatch.setitem(sys.modules, "matminer.datasets", module)
    dataset = load_set("jdft2d", tmp_path)
    assert dataset.formula(2) == "Na3Cl"
    assert dataset.target("exfoliation energy")[635] == 635
    assert dataset.units == {"exfoliation energy": "meV/atom"}
    assert mean_sites(dataset) == 2
    with pytest.raises(FileNotFoundError, match="could not fetch matbench_steels"):
        load_set("steels", tmp_path)
    monkeypatch.setitem(sys.modules, "matminer.datasets", None)
    with pytest.raises(FileNotFoundError, match="matminer is not installed"):
        load_set("steels", tmp_path)
