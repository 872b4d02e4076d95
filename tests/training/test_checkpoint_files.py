from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from pyg_dim.training.checkpoint_files import CheckpointFiles
from pyg_dim.training.run import train


def best_of(checkpoint):
    return next(s for s in checkpoint["callbacks"].values() if s.get("best_k_models"))


@pytest.fixture
def trained(options):
    """Options of a run of an epoch, and its folder."""
    chosen = options(name="run", epochs=1)
    return chosen, train(chosen).directory


def test_a_run_writes_no_checkpoint_elsewhere(options, tmp_path, monkeypatch):
    """Lightning would write them to the folder for temporary files first, which may be another disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    directory = train(options(name="run", epochs=1, val_fraction=0.0)).directory
    assert (directory / "last.ckpt").exists()
    assert not list(directory.glob("*.tmp"))


def test_a_moved_run_keeps_its_best_checkpoint(trained, tmp_path):
    """Lightning forgets the lowest loss of a run in another folder, and would take the next epoch for the best."""
    chosen, directory = trained
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.move(directory, moved)
    contents = torch.load(moved / "last.ckpt", weights_only=True)
    best = best_of(contents)
    # No epoch to come is as good.
    low = torch.tensor(-1e9)
    best["best_model_score"] = best["kth_value"] = low
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], low)
    torch.save(contents, moved / "last.ckpt")
    before = (moved / "best.ckpt").read_bytes()
    train(replace(chosen, epochs=2, resume=str(moved / "last.ckpt")))
    assert (moved / "best.ckpt").read_bytes() == before
    assert best_of(torch.load(moved / "last.ckpt", weights_only=True))["best_model_score"] == low


def test_a_checkpoint_that_was_copied_alone_gets_a_best_one_anew(trained, tmp_path):
    chosen, directory = trained
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(directory / "last.ckpt", alone)
    train(replace(chosen, epochs=2, resume=str(alone / "last.ckpt")))
    assert (alone / "best.ckpt").exists()
    assert (directory / "best.ckpt").exists()


def test_paths_are_of_the_folder_of_the_file(trained):
    _, directory = trained
    best = best_of(CheckpointFiles().load_checkpoint(directory / "last.ckpt"))
    assert best["best_model_path"] == best["kth_best_model_path"] == str(directory.resolve() / "best.ckpt")
    assert list(best["best_k_models"]) == [best["best_model_path"]]
