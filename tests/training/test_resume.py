from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from pyg_dim.training.callbacks import Interrupted
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.run import train
from pyg_dim.training.setup import prepare_data


@pytest.fixture
def finished(options):
    """Options of a run of one epoch, and its last checkpoint."""
    chosen = options(name="run", epochs=1)
    return chosen, train(chosen).directory / "last.ckpt"


def test_a_complete_run_is_left_as_it_is(finished):
    chosen, checkpoint = finished
    before = {file.name: file.read_bytes() for file in checkpoint.parent.glob("*.*") if file.is_file()}
    with pytest.raises(ValueError, match=r"the run is complete: raise --epochs to go on \(epochs in .*: 1"):
        train(replace(chosen, resume=str(checkpoint)))
    assert {file.name: file.read_bytes() for file in checkpoint.parent.glob("*.*") if file.is_file()} == before
    longer = train(replace(chosen, resume=str(checkpoint), epochs=2))
    assert {"train/js/local", "val/js/local"} <= longer.metrics.keys()
    # An epoch fewer than there are is no place to go on from either.
    with pytest.raises(ValueError, match=r"the run is complete.*: 2, --epochs: 1\)"):
        train(replace(chosen, resume=str(checkpoint), epochs=1))


def test_a_run_without_validation_is_complete_without_a_summary(options):
    chosen = options(name="run", epochs=1, val_fraction=0.0)
    checkpoint = train(chosen).directory / "last.ckpt"
    with pytest.raises(ValueError, match="the run is complete"):
        train(replace(chosen, resume=str(checkpoint)))


def test_a_run_stopped_in_its_last_validation_is_summarised(options, monkeypatch):
    whole = train(options(name="whole"))
    chosen = options(name="stopped")
    original = TrainingModule.validation_step

    def validation_step(self, batch, batch_idx):
        if self.current_epoch == chosen.epochs - 1 and batch_idx == 0:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "validation_step", validation_step)
        with pytest.raises(Interrupted) as stop:
            train(chosen)
    checkpoint = stop.value.checkpoint
    assert not (checkpoint.parent / "summary.md").exists()
    parameters = torch.load(checkpoint, weights_only=True)["state_dict"]

    result = train(replace(chosen, resume=str(checkpoint)))
    assert result.metrics["val/js/local"] == whole.metrics["val/js/local"]
    table = pd.read_csv(checkpoint.parent / "summary.csv")
    assert set(table["section"]) == {"loss", "probe"}
    losses, expected = (t[t["section"] == "loss"].set_index("name") for t in (table, whole.summary))
    pd.testing.assert_frame_equal(losses[["val", "train"]], expected[["val", "train"]], check_like=True)
    after = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], value) for name, value in parameters.items())
    with pytest.raises(ValueError, match="the run is complete"):
        train(replace(chosen, resume=str(checkpoint)))


def test_a_summary_of_fewer_epochs_is_none(finished):
    chosen, checkpoint = finished
    os.utime(checkpoint.parent / "summary.md", (0, 0))
    result = train(replace(chosen, resume=str(checkpoint)))
    assert (checkpoint.parent / "summary.md").stat().st_mtime > 0
    assert "val/js/local" in result.metrics


def test_a_run_stays_in_its_folder(finished, tmp_path):
    chosen, checkpoint = finished
    again = replace(chosen, epochs=2, resume=str(checkpoint))
    for changes in ({"name": "other"}, {"logdir": str(tmp_path / "other")}):
        with pytest.raises(ValueError, match=r"--resume goes on in the folder of its checkpoint.*leave out --logdir"):
            train(replace(again, **changes))
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(checkpoint.parent, moved)
    here = replace(again, resume=str(moved / "last.ckpt"))
    assert train(here).directory == moved
    told = replace(here, logdir=str(moved.parent), name="renamed", epochs=3)
    assert train(told).directory == moved


@pytest.mark.parametrize(("name", "value"), [("devices", 2), ("lr", 0.5), ("limit", 30)])
def test_what_is_computed_stays(finished, name, value):
    chosen, checkpoint = finished
    with pytest.raises(ValueError, match=rf"{name} was .* and is now {value}: leave that out.*--init .*last\.ckpt"):
        train(replace(chosen, epochs=2, resume=str(checkpoint), **{name: value}))


def moved_site(table):
    positions = table["cartesian_site_positions"].to_pylist()
    positions[3][1][0] += 0.01
    return {"cartesian_site_positions": positions}


def stretched_cell(table):
    cells = table["lattice_vectors"].to_pylist()
    cells[3][0][0] += 0.01
    return {"lattice_vectors": cells}


def other_label(table):
    return {"energy": [None, 99.0, *table["energy"].to_pylist()[2:]]}


def other_species(table):
    species = table["species_at_sites"].to_pylist()
    species[3] = ["Cs", "I"]
    return {"species_at_sites": species}


def fewer(table):
    return {}


@pytest.mark.parametrize("change", [moved_site, stretched_cell, other_label, other_species, fewer])
def test_other_crystals_or_labels_cannot_be_resumed(options, parquet, tmp_path, change):
    chosen = options(epochs=1, val_fraction=0.0, target="energy")
    checkpoint = train(chosen).directory / "last.ckpt"
    table = pq.read_table(parquet)
    columns = table.to_pydict() | change(table)
    changed = pd.DataFrame(columns).head(30 if change is fewer else 60)
    changed.to_parquet(tmp_path / "other.parquet")
    other = replace(chosen, data=str(tmp_path / "other.parquet"), epochs=2, resume=str(checkpoint))
    with pytest.raises(ValueError, match=r"was trained on 60 crystals of .*other\.parquet now gives \d+, or.*--init"):
        train(other)


def test_the_checksum_is_of_what_the_run_uses(options):
    prints = {
        name: prepare_data(options(**changes)).summary("x", targets)["fingerprint"]
        for name, changes, targets in [
            ("plain", {}, []),
            ("again", {}, []),
            ("exact", {"precision": "64"}, []),
            ("labels", {}, ["energy"]),
            ("split", {"seed": 1}, []),
        ]
    }
    assert prints["plain"] == prints["again"] == prints["exact"]
    assert len(set(prints.values())) == 3


def test_a_checkpoint_without_a_loop_cannot_be_resumed(finished, tmp_path):
    chosen, checkpoint = finished
    contents = torch.load(checkpoint, weights_only=True)
    del contents["loops"]
    torch.save(contents, checkpoint)
    with pytest.raises(ValueError, match=r"last\.ckpt has no state of the training loop.*--init"):
        train(replace(chosen, epochs=2, resume=str(checkpoint)))
