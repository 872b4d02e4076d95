from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyg_dim.data.splits import given_parts
from pyg_dim.experiments import study as module
from pyg_dim.experiments import workspace
from pyg_dim.experiments.folds import make_fold
from pyg_dim.experiments.study import FORMATION, GAP, MORE
from pyg_dim.training.checkpoints import SECTION, read_checkpoint


def test_an_encoder_is_trained_once_on_the_training_fold(study, monkeypatch):
    checkpoint = study.pretrained("dim")
    assert checkpoint == study.directory / "runs" / "dim-random" / "last.ckpt"
    about = read_checkpoint(checkpoint)[SECTION]
    assert (about["data"]["train"], about["data"]["val"]) == (97, 11)
    train, val = given_parts(study.crystals, about["options"]["split"])
    assert train.equal(study.fold.train)
    assert val.equal(study.fold.dev)

    runs = []
    monkeypatch.setattr(workspace, "train", runs.append)
    assert study.pretrained("dim") == checkpoint
    assert not runs
    # A run with fewer epochs than are wanted goes on.
    replace(study, scale=replace(study.scale, epochs=3)).pretrained("dim")
    assert [(run.resume, run.epochs, run.name) for run in runs] == [(str(checkpoint), 3, "dim-random")]
    # Here the other data are the same crystals, so that none would be left to train on.
    monkeypatch.setattr(module, "make_fold", lambda dataset, by, without: make_fold(dataset, by))
    replace(study, split="formula").pretrained("dim")
    assert runs[1].name == "dim-formula"
    assert runs[1].resume is None
    assert runs[1].split == str(study.directory / "fold-formula.json")


def test_labels_are_drawn_from_a_pool_of_the_training_fold_and_measured_on_the_test_fold(study):
    for task in study.tasks((FORMATION, GAP)):
        ((train, test),) = task.folds
        assert train.numel() == 40
        assert test.equal(study.fold.test)
        assert set(train.tolist()) <= set(study.fold.train.tolist())


def test_vectors_are_computed_once_for_the_crystals_of_a_task(study, finished, monkeypatch):
    calls = []
    original = workspace.checkpoint_features

    def counted(checkpoint, dataset, rows, readouts, trained):
        calls.append(rows)
        return original(checkpoint, dataset, rows, readouts, trained)

    monkeypatch.setattr(workspace, "checkpoint_features", counted)
    energy, gap = study.tasks((FORMATION, GAP))
    # Some band gaps are missing, so that labels of the two are drawn from other crystals.
    assert not energy.rows.equal(gap.rows)
    for task in (energy, gap, energy, gap):
        vectors = study.representations(task, finished.checkpoint, ("global",))["global"]
        assert np.isfinite(vectors).all(axis=1).nonzero()[0].tolist() == task.rows.tolist()
        magpie = study.descriptors(task, "magpie")
        assert np.isfinite(magpie).all(axis=1).nonzero()[0].tolist() == task.rows.tolist()
    assert [rows.tolist() for rows in calls] == [energy.rows.tolist(), gap.rows.tolist()]
    study.representations(energy, finished.checkpoint, ("global",), trained=False)
    assert len(calls) == 3


@pytest.mark.parametrize("split", ["random", "formula"])
def test_tables_are_of_a_split(study, split):
    chosen = replace(study, split=split)
    assert chosen.probe_table().path == study.directory / f"probes-{split}.csv"
    assert chosen.transfer_table().path == study.directory / f"transfer-{split}.csv"


def test_the_fold_by_formula_trains_on_none_of_the_phonons(study, dataset, tmp_path):
    # Here the other data are the same crystals.
    chosen = replace(study, split="formula")
    assert chosen.fold.train.numel() == 0
    some = tmp_path / "some.parquet"
    dataset.subset(torch.arange(30)).to_parquet(some)
    fold = replace(chosen, phonons=str(some)).fold
    formulas = {dataset.formula(row) for row in range(30)}
    assert not formulas & {dataset.formula(row) for row in fold.train.tolist()}
    assert fold.removed.numel() > 0


def test_more_crystals_are_those_whose_formula_is_in_no_test_of_either_version(study, dataset, tmp_path, monkeypatch):
    phonons = tmp_path / "phonons.parquet"
    dataset.subset(torch.arange(12)).to_parquet(phonons)
    known = replace(study, phonons=str(phonons), unlabelled=study.data)
    checkpoint = known.pretrained(MORE)
    about = read_checkpoint(checkpoint)[SECTION]
    train, val = given_parts(dataset, about["options"]["split"])
    assert val.numel() > 0
    seen = {dataset.formula(row) for row in torch.cat([train, val]).tolist()}
    tests = [torch.arange(12), *(replace(known, split=split).fold.test for split in ("random", "formula"))]
    unwanted = {dataset.formula(row) for rows in tests for row in rows.tolist()}
    assert not seen & unwanted
    assert seen | unwanted == {dataset.formula(row) for row in range(len(dataset))}
    # One encoder serves both versions.
    monkeypatch.setattr(workspace, "train", None)
    assert replace(known, split="formula").pretrained(MORE) == checkpoint
    known.keep_to_settings()
    with pytest.raises(ValueError, match="unlabelled"):
        replace(known, unlabelled="others.parquet").keep_to_settings()
    with pytest.raises(ValueError, match="give --unlabelled"):
        study.pretrained(MORE)
