"""Figures compute what they need, once."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from pyg_dim.evaluate.regressors import BLEND, DUMMY, LEAST_SQUARES, RIDGE
from pyg_dim.experiments import reproduce, workspace
from pyg_dim.experiments import study as study_module
from pyg_dim.experiments.features import MAGPIE
from pyg_dim.experiments.page import write_tables
from pyg_dim.experiments.reproduce import FIGURES, MIXTURES
from pyg_dim.experiments.scales import RECIPES
from pyg_dim.experiments.study import FORMATION, GAP, MORE, PHONONS
from pyg_dim.training.finetune import FineTuneOptions

_COMBINED = {MORE: "combined"}
"""What stands in for an encoder of more crystals."""


@pytest.fixture
def small(study, monkeypatch):
    """The study with few labels and probes, ablations of two kinds, and the formula split, which knows no Matbench."""
    monkeypatch.setattr(reproduce, "SIZES", (10, 20))
    monkeypatch.setattr(reproduce, "FINE_TUNING", dict.fromkeys((10, 20), FineTuneOptions(epochs=1)))
    monkeypatch.setattr(reproduce, "_PROBES", dict.fromkeys(reproduce._PROBES, (DUMMY, RIDGE, BLEND)))
    ablations = {"all": {}, "other": {"kinds": "other"}}
    monkeypatch.setattr(reproduce, "ABLATIONS", ablations)
    monkeypatch.setattr(study_module, "ABLATIONS", ablations)
    # Descriptors of structures take a tenth of a second a crystal and an optional package.
    monkeypatch.setattr(reproduce, "_STRUCTURE", ())
    monkeypatch.setitem(RECIPES, "combined", RECIPES["combined"] | {"objective": "deep_infomax+fingerprint"})
    return study


def test_figure_8_compares_all_representations_and_draws(small, monkeypatch):
    original = type(small).pretrained
    FIGURES["fig8"](small)
    frame = small.probe_table().read()
    of_more = {name for name in (*reproduce._PROBES, *MIXTURES) if name.startswith(MORE)}
    assert set(frame["features"]) == {*reproduce._PROBES, *MIXTURES} - {"ofm", "xrd"} - of_more
    assert set(frame["task"]) == {FORMATION, GAP}
    assert len([*small.directory.glob("representations-*-random.png")]) == 1
    # Nothing is computed again, encoders included.
    monkeypatch.setattr(workspace, "train", None)
    FIGURES["fig8"](small)
    assert len(small.probe_table().read()) == len(frame)
    text = write_tables(small).read_text()
    assert "| combined+magpie |" in text
    assert f"| {FORMATION} | 10 |" in text
    # More crystals to pre-train on are added to what there is.
    monkeypatch.setattr(type(small), "pretrained", lambda self, recipe: original(self, _COMBINED.get(recipe, recipe)))
    more = dataclasses.replace(small, unlabelled=small.data)
    FIGURES["fig8"](more)
    added = more.probe_table().read()
    assert set(added["features"]) - set(frame["features"]) == of_more
    pd.testing.assert_frame_equal(added[: len(frame)], frame)
    text = write_tables(more).read_text()
    # The same vectors have the same errors.
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {FORMATION} | 20 | {MORE} |"))
    assert ", +0 [+0, +0], 0-2-0 |" in line


def test_figure_11_has_a_row_for_every_ablation(small):
    FIGURES["fig11"](small)
    frame = small.probe_table().read()
    assert set(frame["features"]) == {"all", "other", "untrained"}
    assert set(frame["probe"]) == {LEAST_SQUARES, RIDGE}


def test_levers_are_compared_with_the_recipe_that_they_change(small, monkeypatch, tmp_path):
    of_encoders = {"combined": {}, "no fingerprints": {"objective": "deep_infomax"}}
    for module in (reproduce, study_module):
        monkeypatch.setattr(module, "LEVERS", of_encoders)
    monkeypatch.setattr(reproduce, "TUNING_LEVERS", {"combined": {}, "kept Deep InfoMax": {"dim_weight": 0.5}})
    # Formulas of both prototypes, a third of all: these are not trained on.
    table = pq.read_table(small.data).take([*range(20), *range(60, 80)])
    pq.write_table(table.append_column(PHONONS, table[FORMATION]), tmp_path / "phonons.parquet")
    small = dataclasses.replace(small, phonons=str(tmp_path / "phonons.parquet"), split="formula")
    (energy, gap), fold = small.development_tasks(), small.fold
    for task in (energy, gap):
        ((train, test),) = task.folds
        assert test.equal(fold.dev)
        assert torch.isin(train, fold.train).all()
    FIGURES["levers"](small)
    frame = small.probe_table().read()
    assert set(frame["features"]) == {*of_encoders}
    assert set(frame["task"]) == {FORMATION, GAP, PHONONS}
    assert set(frame["probe"]) == {BLEND}
    FIGURES["tuning-levers"](small)
    tuned = small.transfer_table().read()
    assert set(tuned["start"]) == {"combined", "kept Deep InfoMax"}
    assert set(tuned["n"]) == {10}
    text = write_tables(small).read_text()
    for name, lever in (("levers", "no fingerprints"), ("tuning", "kept Deep InfoMax")):
        section = text.split(f"## {name}-formula\n")[1].split("\n## ")[0]
        assert section.count(f"| {lever} |") == 3
        assert "against combined" in section
    assert len([*small.directory.glob("levers-*-formula.png"), *small.directory.glob("tuning-*-formula.png")]) == 2


def test_a_run_that_was_stopped_goes_on(small, monkeypatch):
    checkpoint = small.run("some", epochs=1, **RECIPES["dim"])
    trained, ran = [], workspace.train
    monkeypatch.setattr(workspace, "train", lambda options: trained.append(options) or ran(options))
    assert small.run("some", epochs=1, **RECIPES["dim"]) == checkpoint
    assert not trained
    small.run("some", epochs=2, **RECIPES["dim"])
    assert [options.resume for options in trained] == [str(checkpoint)]
    with pytest.raises(ValueError, match="lr was"):
        small.run("some", epochs=2, **(RECIPES["dim"] | {"lr": 1e-4}))


def test_descriptors_are_those_of_the_crystals(small):
    task = small.tasks((FORMATION,))[0]
    vectors = small.descriptors(task, MAGPIE)
    assert vectors.shape == (120, 145)
    assert small.descriptors(task, MAGPIE) is vectors


def test_matbench_has_folds_of_its_own(small):
    with pytest.raises(ValueError, match="--split random"):
        FIGURES["matbench"](dataclasses.replace(small, split="formula"))
