from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pyg_dim.training.checkpoints import load_encoder, read_checkpoint
from pyg_dim.training.finished import read_runs
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.run import train

ENCODERS = {
    "cgcnn": {"site_channels": 8, "convolutions": 1, "crystal_channels": 8},
    "sitenet": {
        "site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8], "local_channels": 8,
        "pre_pool": [8], "post_pool": [8, 8], "supercell_sites": 8,
    },
}  # fmt: skip


def options(parquet, logdir, model="cgcnn", **changes):
    values = {
        "data": str(parquet), "model": model, "encoder": ENCODERS[model], "epochs": 2, "batch_sites": 24, "lr": 1e-3,
        "accelerator": "cpu", "compile": False, "logdir": str(logdir), "val_fraction": 0.2, "target": "energy",
        "name": model,
    }  # fmt: skip
    return TrainOptions(**(values | changes))


@pytest.fixture(scope="module")
def trained(parquet, tmp_path_factory):
    """Folder with a run of each of two architectures: two epochs on the same 60 crystals."""
    logdir = tmp_path_factory.mktemp("trained") / "runs"
    for model in ENCODERS:
        train(options(parquet, logdir, model))
    return logdir


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the two runs, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def scalars(folder):
    """``{tag: [value, ...]}`` as TensorBoard reads the whole folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def rewrite_checkpoint(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_numbers_are_those_of_events_summary_and_checkpoint(trained):
    found, left_out = read_runs([trained])
    assert not left_out
    assert [run.name for run in found] == [run.model for run in found] == ["cgcnn", "sitenet"]
    for run in found:
        folder = trained / run.name
        logged, table = scalars(folder), pd.read_csv(folder / "summary.csv")
        about = read_checkpoint(folder / "last.ckpt")["pyg_dim"]
        losses = table[table["section"] == "loss"].set_index("name")["val"]
        assert set(run.losses) == {"js/local", "js/global", "kl/local", "kl/global"} < set(losses.index)
        for name, curve in run.losses.items():
            assert curve == logged[f"val/{name}"]
            assert len(curve) == 2
            assert curve[-1] == pytest.approx(losses[name], rel=1e-6)
        assert run.speed == pytest.approx(np.median(logged["crystals_per_second"]))
        probes = table[table["section"] == "probe"].reset_index(drop=True)
        numbers = list(table.columns[table.columns.get_loc("untrained_median") :])
        pd.testing.assert_frame_equal(run.probes[numbers], probes[numbers], check_dtype=False)
        assert (run.probes[["name", "readout", "probe"]] == probes[["name", "readout", "probe"]]).all(axis=None)
        assert (run.probes["n"] == probes["n"]).all()

        assert (run.epochs, run.train) == (2, about["data"]["train"])
        assert run.crystals_seen == 2 * about["data"]["train"]
        assert run.fingerprint == about["data"]["fingerprint"]
        assert (run.data, run.objective, run.part) == ("binaries.parquet", "deep_infomax", "val")
        assert run.options["target"] == "energy"

        sizes = {name: p.numel() for name, p in load_encoder(folder / "last.ckpt").named_parameters()}
        of_levels = sum(size for name, size in sizes.items() if "level" in name)
        assert run.level_parameters == of_levels > 0
        assert run.parameters == sum(sizes.values()) - of_levels > 0
    assert found[0].fingerprint == found[1].fingerprint


def test_runs_are_found_at_any_depth_once_each_and_their_names_are_distinct(trained, tmp_path):
    shutil.copytree(trained / "cgcnn", tmp_path / "deep" / "a" / "b" / "cgcnn")
    (tmp_path / "deep" / "link").symlink_to(trained / "sitenet")
    (tmp_path / "deep" / "a" / "loop").symlink_to(tmp_path / "deep")
    (tmp_path / "deep" / "empty").mkdir()
    found, left_out = read_runs([trained / "cgcnn", tmp_path / "deep", str(trained)])
    assert not left_out
    assert [run.name for run in found] == ["runs/cgcnn", "b/cgcnn", "sitenet"]


def test_a_resumed_run_is_one_run(parquet, trained, runs):
    last = runs / "cgcnn" / "last.ckpt"
    train(options(parquet, runs, epochs=3, resume=str(last), name=None))
    assert len(list((runs / "cgcnn").glob("events.*"))) > 2
    (run,), _ = read_runs([runs / "cgcnn"])
    (before,), _ = read_runs([trained / "cgcnn"])
    assert run.epochs == 3
    assert run.losses["js/local"][:2] == before.losses["js/local"]
    assert run.losses["js/local"] == scalars(runs / "cgcnn")["val/js/local"]
    table = pd.read_csv(runs / "cgcnn" / "summary.csv").set_index("name")
    assert run.losses["js/local"][-1] == pytest.approx(table.loc["js/local", "val"], rel=1e-6)


def test_a_later_value_of_a_step_wins_and_given_up_epochs_do_not_count(runs):
    folder = runs / "cgcnn"
    steps = read_checkpoint(folder / "last.ckpt")["global_step"]
    # Two epochs of the same number of batches each.
    first, behind = steps // 2 - 1, steps + 5
    (before,), _ = read_runs([folder])
    with SummaryWriter(str(folder)) as writer:
        for tag in ("train/total", "val/js/local", "crystals_per_second"):
            writer.add_scalar(tag, 7.0, first)
            writer.add_scalar(tag, 9.0, behind)
    (run,), _ = read_runs([folder])
    assert run.epochs == 2
    assert run.losses["js/local"] == [7.0, before.losses["js/local"][1]]


def test_without_validation_the_losses_are_those_of_training(parquet, tmp_path):
    train(options(parquet, tmp_path, val_fraction=0.0, epochs=1))
    (run,), left_out = read_runs([tmp_path])
    assert not left_out
    assert (run.part, len(run.probes)) == ("train", 0)
    assert list(run.losses) == ["js/local", "js/global", "kl/local", "kl/global"]
    assert run.losses["js/local"] == scalars(tmp_path / "cgcnn")["train/js/local"]


def test_a_supervised_run_has_errors_of_labels(parquet, tmp_path):
    train(options(parquet, tmp_path, objective="supervised", epochs=1))
    (run,), _ = read_runs([tmp_path])
    assert list(run.losses) == ["mae/energy"]
    assert run.objective == "supervised"
    assert math.isfinite(run.losses["mae/energy"][0])


def test_false_samples_that_are_impossible_leave_the_run_readable(parquet, tmp_path):
    train(options(parquet, tmp_path, batch_sites=2, kinds="other", epochs=1))
    (run,), left_out = read_runs([tmp_path])
    assert not left_out
    assert "js/local" not in run.losses


def cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def events_of_training(folder):
    return max(folder.glob("events.*"), key=lambda path: path.stat().st_size)


def no_epochs_left(folder):
    def change(checkpoint):
        checkpoint["pyg_dim"]["options"]["epochs"] = 5

    rewrite_checkpoint(folder / "last.ckpt", change)


def another_architecture(folder):
    def change(checkpoint):
        checkpoint["pyg_dim"]["model"] = "nonet"

    rewrite_checkpoint(folder / "last.ckpt", change)


def other_widths(folder):
    def change(checkpoint):
        checkpoint["pyg_dim"]["encoder"]["site_channels"] = 9

    rewrite_checkpoint(folder / "last.ckpt", change)


def no_loops(folder):
    rewrite_checkpoint(folder / "last.ckpt", lambda checkpoint: checkpoint.pop("loops"))


def edit_summary(change):
    def damage(folder):
        path = folder / "summary.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(lines)))

    return damage


def replace(old, new):
    return edit_summary(lambda lines: [line.replace(old, new) for line in lines])


def another_epoch(folder):
    table = pd.read_csv(folder / "summary.csv")
    table.loc[table["name"] == "js/local", "val"] += 0.1
    table.to_csv(folder / "summary.csv", index=False)


def a_row_less(folder):
    cut_at = edit_summary(lambda lines: lines[:-1])
    cut_at(folder)


def foreign_events(folder):
    for path in folder.glob("events.*"):
        path.write_bytes(b"no events " * 1000)


def events_of_two_runs(folder):
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("train/total", 1.0, 0)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "last.ckpt").unlink(), r"not finished: it has no last\.ckpt"),
        (lambda folder: cut(folder / "last.ckpt", 0.5), r"last\.ckpt is not a readable checkpoint"),
        (lambda folder: torch.save({"a": 1}, folder / "last.ckpt"), r"no checkpoint of a pyg_dim run"),
        (no_epochs_left, r"not finished: 2 of 5 epochs; go on with pyg-dim train --resume .*cgcnn/last\.ckpt"),
        (no_loops, r"last\.ckpt is damaged: it has no state of the training loop"),
        (another_architecture, r"unknown model 'nonet'"),
        (other_widths, r"another shape: .*"),
        (lambda folder: (folder / "summary.csv").unlink(), r"not finished: it has no summary\.csv; go on with"),
        (lambda folder: (folder / "summary.csv").write_bytes(b""), r"summary\.csv is damaged"),
        (lambda folder: (folder / "summary.csv").write_bytes(b"\xff\x00" * 50), r"summary\.csv is damaged"),
        (lambda folder: (folder / "summary.csv").write_text("a,b\n1,2\n"), r"summary\.csv is damaged"),
        (lambda folder: cut(folder / "summary.csv", 0.9), r"summary\.csv is damaged"),
        (replace("ridge,", "ridge,x"), r"summary\.csv is damaged: it is no table"),
        (replace(",ridge", ".5,ridge"), r"summary\.csv is damaged"),
        (edit_summary(lambda lines: lines[:1]), r"summary\.csv is damaged: it has 0 losses"),
        (a_row_less, r"summary\.csv is damaged: it has 5 losses and \d+ of \d+ probe errors"),
        (another_epoch, r"summary\.csv is of another epoch than the events: val/js/local"),
        (lambda folder: [path.unlink() for path in folder.glob("events.*")], r"events .*: train/total|crystals_per_"),
        (foreign_events, r"the events in .*cgcnn are damaged or incomplete: crystals_per_second of 0 in 2 epochs"),
        (lambda folder: cut(events_of_training(folder), 0.2), r"the events in .* are damaged or incomplete"),
        (events_of_two_runs, r"the events in .* are of 3 epochs, last\.ckpt of 2"),
    ],
)  # fmt: skip
def test_a_run_that_is_damaged_or_not_finished_is_left_out_with_its_reason(runs, damage, reason):
    damage(runs / "cgcnn")
    found, left_out = read_runs([runs])
    assert [run.name for run in found] == ["sitenet"]
    assert list(left_out) == ["cgcnn"]
    assert re.search(reason, left_out["cgcnn"]), left_out
    with pytest.raises(ValueError, match=r"^no finished run: cgcnn: "):
        read_runs([runs / "cgcnn"])


def test_an_empty_file_of_events_beside_others_does_no_harm(runs):
    (runs / "cgcnn" / "events.out.tfevents.1.host.1.0").write_bytes(b"")
    found, left_out = read_runs([runs])
    assert (len(found), left_out) == (2, {})


def test_folders_that_hold_no_run(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give folders of runs"):
        read_runs([trained, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"last\.ckpt is a file: give the folder of the run"):
        read_runs([trained / "cgcnn" / "last.ckpt"])
    with pytest.raises(ValueError, match=f"^no finished run: {tmp_path}: holds no run"):
        read_runs([tmp_path])
    found, left_out = read_runs([trained, tmp_path])
    assert len(found) == 2
    assert list(left_out) == [str(tmp_path)]
