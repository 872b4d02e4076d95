"""Killed at any moment, commands go on where they were, and end where they would have ended."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyg_dim.training.finished import read_runs

KILLED = -9
SOON = 6
"""Ticks that any command takes that goes on."""
RUN = Path("runs/run")


def moments(seed, ticks, number):
    """One moment in each of as many parts of a command, drawn at random."""
    draw = random.Random(seed)
    edges = [ticks * part // number for part in range(number + 1)]
    return [draw.randrange(first, last) for first, last in itertools.pairwise(edges)]


def kill_after_a_time(nursery, folder, arguments, seconds):
    """Kill a command after a time, or after half of it where it was done by then; in a fresh folder each time."""
    while True:
        folder.mkdir()
        ended = nursery.run(folder, arguments, seconds=seconds)
        if ended.status == KILLED:
            return ended
        shutil.rmtree(folder)
        seconds /= 2


# Training


def state(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    """Equal to the last bit, at any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def epochs_saved(last):
    return state(last)["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] if last.exists() else 0


def go_on(last, run_file):
    return ["train", "--resume", str(last)] if last.exists() else ["train", "--config", str(run_file)]


def assert_equal_runs(folder, whole):
    for file in ("last.ckpt", "best.ckpt"):
        mine, theirs = state(folder / file), state(whole / file)
        assert mine["state_dict"].keys() == theirs["state_dict"].keys()
        for part in ("state_dict", "optimizer_states", "global_step", "epoch"):
            assert same(mine[part], theirs[part]), (file, part)
    for file in ("summary.csv", "summary.md", "hparams.yaml"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    curves = [read_runs([path])[0][0].curves for path in (folder, whole)]
    for tag in curves[1]:
        if tag != "crystals_per_second" and not tag.startswith("probe/"):
            np.testing.assert_array_equal(curves[0][tag], curves[1][tag], err_msg=tag)


@pytest.fixture(scope="module")
def whole_run(nursery, run_file, tmp_path_factory):
    """Folder where a run was made to which nothing happened, and how it ended."""
    folder = tmp_path_factory.mktemp("whole")
    ended = nursery.run(folder, ["train", "--config", str(run_file)])
    assert ended.status == 0, ended.log
    return folder / RUN, ended


def finish(nursery, folder, run_file):
    """Go on with a run; epochs that were computed."""
    last, done = folder / RUN / "last.ckpt", epochs_saved(folder / RUN / "last.ckpt")
    ended = nursery.run(folder, go_on(last, run_file))
    complete = "the run is complete" in ended.log and (folder / RUN / "summary.md").exists()
    assert ended.status == 0 or complete, ended.log
    # Nothing that was saved is computed again.
    assert ended.log.count("epoch ") == 3 - done or complete


@pytest.mark.parametrize("part", range(6))
def test_training(nursery, faults, run_file, whole_run, tmp_path, part):
    """Killed twice: somewhere in its way, and soon after it was taken up."""
    whole, ended = whole_run
    moment = moments(0, ended.ticks, 6)[part]
    last = tmp_path / RUN / "last.ckpt"
    with faults.injected_into("train", "kill -9"):
        killed = nursery.run(tmp_path, ["train", "--config", str(run_file)], tick=moment)
        assert killed.status == KILLED, killed.log
        # Behind the line of an epoch comes its checkpoint.
        assert epochs_saved(last) >= killed.log.count("epoch ") - 1
        saved = epochs_saved(last)
        if saved < 3:
            with faults.injected_into("train", "kill -9"):
                again = nursery.run(tmp_path, go_on(last, run_file), tick=moment % SOON)
                assert again.status == KILLED, again.log
                assert epochs_saved(last) >= saved
        finish(nursery, tmp_path, run_file)
        assert_equal_runs(tmp_path / RUN, whole)


@pytest.mark.parametrize("share", [0.45, 0.8])
def test_training_by_the_clock(nursery, faults, run_file, whole_run, tmp_path, share):
    whole, ended = whole_run
    folder = tmp_path / "here"
    with faults.injected_into("train", "kill -9"):
        kill_after_a_time(nursery, folder, ["train", "--config", str(run_file)], share * ended.seconds)
        finish(nursery, folder, run_file)
        assert_equal_runs(folder / RUN, whole)


# Import


@pytest.fixture(scope="module")
def whole_import(nursery, cifs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    ended = nursery.run(folder, ["import", str(cifs), "out.parquet", "--workers=1"])
    assert ended.status == 0, ended.log
    return folder, ended


def assert_equal_imports(folder, whole):
    for file in ("out.parquet", "out.report.json"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    assert {path.name for path in folder.iterdir()} == {"out.parquet", "out.report.json"}


def parts_made(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out.parquet.parts").glob("*.parquet")}


def resume_import(nursery, folder, cifs, tick=None):
    return nursery.run(folder, ["import", str(cifs), "out.parquet", "--workers=1", "--resume"], tick=tick)


@pytest.mark.parametrize("part", range(12))
def test_import(nursery, faults, cifs, whole_import, tmp_path, part):
    whole, ended = whole_import
    moment = moments(1, ended.ticks, 12)[part]
    with faults.injected_into("import", "kill -9"):
        killed = nursery.run(tmp_path, ["import", str(cifs), "out.parquet", "--workers=1"], tick=moment)
        assert killed.status == KILLED, killed.log
        made = parts_made(tmp_path)
        if not (tmp_path / "out.parquet").exists():
            with faults.injected_into("import", "kill -9"):
                again = resume_import(nursery, tmp_path, cifs, tick=moment % SOON)
                assert again.status == KILLED, again.log
        # Parts that were made, and had their checksum, are not made again.
        checked = [name for name in made if (tmp_path / "out.parquet.parts" / name).with_suffix(".sha256").exists()]
        kept = parts_made(tmp_path)
        assert all(kept.get(name) == made[name] for name in checked)
        ended = resume_import(nursery, tmp_path, cifs)
        assert ended.status == 0, ended.log
        assert_equal_imports(tmp_path, whole)


def test_every_moment_of_the_end_of_an_import(nursery, faults, cifs, whole_import, tmp_path):
    """Where the parts are made, the file and its report take their places and the parts are removed."""
    whole, ended = whole_import
    for before_the_end in range(1, 18):
        folder = tmp_path / str(before_the_end)
        folder.mkdir()
        with faults.injected_into("import", "kill -9"):
            command = ["import", str(cifs), "out.parquet", "--workers=1"]
            killed = nursery.run(folder, command, tick=ended.ticks - before_the_end)
            assert killed.status == KILLED, killed.log
            again = resume_import(nursery, folder, cifs)
            # All is done but for an empty folder.
            finished = "out.parquet exists" in again.log and not parts_made(folder)
            assert again.status == 0 or finished, again.log
            for file in ("out.parquet", "out.report.json"):
                assert (folder / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_import_by_the_clock(nursery, faults, cifs, whole_import, tmp_path, share):
    whole, ended = whole_import
    folder = tmp_path / "here"
    with faults.injected_into("import", "kill -9"):
        command = ["import", str(cifs), "out.parquet", "--workers=1"]
        kill_after_a_time(nursery, folder, command, share * ended.seconds)
        again = resume_import(nursery, folder, cifs)
        assert again.status == 0 or "out.parquet exists" in again.log, again.log
        assert_equal_imports(folder, whole)


# Embed


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_embed(nursery, faults, parquet, weights, tmp_path, ending):
    """Killed at moments of its way and at each of its last ones; there is the old file, or the new one."""
    out = f"e.{ending}"
    command = ["embed", str(parquet), "--model", str(weights), "--accelerator=cpu", "--batch-sites=24", "--out", out]
    whole = tmp_path / "whole"
    whole.mkdir()
    ended = nursery.run(whole, command)
    assert ended.status == 0, ended.log
    ways = moments(2, ended.ticks, 2)
    for moment in {*ways, *range(ended.ticks - 6, ended.ticks)}:
        for old in (None, b"old"):
            folder = tmp_path / f"{moment}-{old is None}"
            folder.mkdir()
            if old is not None:
                (folder / out).write_bytes(old)
            with faults.injected_into("embed", "kill -9"):
                overwrite = [] if old is None else ["--overwrite"]
                killed = nursery.run(folder, command + overwrite, tick=moment)
                assert killed.status == KILLED, killed.log
                left = (folder / out).read_bytes() if (folder / out).exists() else None
                assert left in (old, (whole / out).read_bytes())
                if old is not None or left is None:
                    again = nursery.run(folder, command + overwrite)
                    assert again.status == 0, again.log
                for file in (out, f"{out}.report.json"):
                    assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
                assert {path.name for path in folder.iterdir()} == {out, f"{out}.report.json"}


# Reproduce


@pytest.fixture(scope="module")
def whole_study(nursery, parquet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    ended = nursery.run(folder, reproduce(parquet))
    assert ended.status == 0, ended.log
    return folder, ended


def reproduce(parquet):
    return ["reproduce", "fig11", "--data", str(parquet), "--phonons", str(parquet), "--scale=smoke", "--out=out"]


def assert_equal_studies(folder, whole):
    mine, theirs = (pd.read_csv(path / "out" / "probes-random.csv").drop(columns="seconds") for path in (folder, whole))
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    for path in sorted((whole / "out").glob("runs/*/last.ckpt")):
        assert same(state(folder / path.relative_to(whole))["state_dict"], state(path)["state_dict"]), path
    pictures = sorted(path.name for path in (whole / "out").glob("*.png"))
    assert pictures
    for name in pictures:
        assert (folder / "out" / name).read_bytes() == (whole / "out" / name).read_bytes(), name


@pytest.mark.parametrize("part", range(4))
def test_reproduce(nursery, faults, parquet, whole_study, tmp_path, part):
    """The same command again goes on: nothing that is in the table, and no epoch that was saved, is computed again."""
    whole, ended = whole_study
    moment = moments(3, ended.ticks, 4)[part]
    with faults.injected_into("reproduce", "kill -9"):
        killed = nursery.run(tmp_path, reproduce(parquet), tick=moment)
        assert killed.status == KILLED, killed.log
        table = tmp_path / "out" / "probes-random.csv"
        rows = table.read_bytes() if table.exists() else b""
        with faults.injected_into("reproduce", "kill -9"):
            again = nursery.run(tmp_path, reproduce(parquet), tick=moment % SOON)
            assert again.status == KILLED, again.log
        ended = nursery.run(tmp_path, reproduce(parquet))
        assert ended.status == 0, ended.log
        assert table.read_bytes().startswith(rows[: rows.rfind(b"\n") + 1])
        assert_equal_studies(tmp_path, whole)
