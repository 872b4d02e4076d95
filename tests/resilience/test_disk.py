"""A disk that is full, or may not be written to: a clear error, and what was there is still there."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pyg_dim.cli import main
from pyg_dim.data import CrystalDataset
from pyg_dim.data.embeddings import write_embeddings
from pyg_dim.data.graph_cache import GraphCache
from pyg_dim.data.graphs import NearestNeighbors
from pyg_dim.data.index_sets import save_index_sets
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.experiments.table import FitTable

FULL = "full disk"
READ_ONLY = "read-only folder"


@contextmanager
def room_for(size):
    """No file can grow beyond so many bytes; a write that would, fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """A folder that nobody can write to; the superuser, who can anywhere, is someone else meanwhile."""
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in folders:
            path.chmod(0o755)


@pytest.fixture
def open_folder(monkeypatch):
    """A folder that everybody can enter, and the folder of the process meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        monkeypatch.chdir(name)
        yield Path(name)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_events(files):
    return {path: data for path, data in files.items() if "tfevents" not in path.name}


def refused(capsys, arguments, *messages):
    """The command ends with one message, which says all of this."""
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr().err
    # Behind a bar of progress, where there is one.
    assert said.splitlines()[-1].startswith("error: cannot "), said
    assert "Traceback" not in said
    for message in messages:
        assert message in said


@pytest.fixture(scope="module")
def finished(run_file, tmp_path_factory):
    """Folder with a run of one epoch, and the same run with two."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, epochs in (("run", 1), ("longer", 2)):
            assert main(["train", "--config", str(run_file), f"--epochs={epochs}", "--name", name]) == 0
    return folder


def parameters(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_training(faults, finished, tmp_path, monkeypatch, capsys, share):
    """The disk fills up in the second epoch: at once, in the events, within a checkpoint."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    last = Path("runs/run/last.ckpt")
    again = ["train", "--resume", str(last), "--epochs=2"]
    before = without_events(contents(tmp_path))
    with faults.injected_into("train", FULL):
        with room_for(int(share * last.stat().st_size)):
            refused(capsys, again, "cannot write to runs/run", f"make room, and go on with --resume {last}")
        after = without_events(contents(tmp_path))
        changed = {path.name for path in before | after if before.get(path) != after.get(path)}
        assert changed <= {"hparams.yaml", "best.ckpt"}
        assert read_whole(Path("runs/run/best.ckpt"))
        assert main(again) == 0
        mine, theirs = parameters(last), parameters(Path("runs/longer/last.ckpt"))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def read_whole(path):
    return all(value.isfinite().all() for value in parameters(path).values())


def test_a_read_only_run(faults, finished, parquet, open_folder, capsys):
    shutil.copytree(finished / "runs", open_folder / "runs")
    shutil.copy(parquet, open_folder)
    command = ["train", "--resume", "runs/run/last.ckpt", "--epochs=2"]
    before = contents(open_folder)
    with faults.injected_into("train", READ_ONLY):
        with read_only(open_folder):
            refused(capsys, [*command, "--data", parquet.name], "cannot write to runs/run: Permission denied")
        assert contents(open_folder) == before


def test_a_run_in_a_read_only_folder(faults, run_file, parquet, open_folder, capsys):
    shutil.copy(parquet, open_folder)
    values = run_file.read_text().replace(str(parquet), parquet.name)
    Path("run.yaml").write_text(values)
    before = contents(open_folder)
    with faults.injected_into("train", READ_ONLY):
        with read_only(open_folder):
            refused(capsys, ["train", "--config", "run.yaml"], "cannot make the folder", "choose --logdir")
        assert contents(open_folder) == before


@pytest.mark.parametrize("size", [0, 100, 1500, 4500])
def test_import(faults, cifs, tmp_path, monkeypatch, capsys, size):
    """The disk fills up in the plan, in the parts, in the file; with an old file to be replaced, which stays."""
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(cifs), "whole.parquet", "--workers=1"]) == 0
    assert size < Path("whole.parquet").stat().st_size
    Path("out.parquet").write_bytes(b"old")
    command = ["import", str(cifs), "out.parquet", "--workers=1", "--overwrite"]
    with faults.injected_into("import", FULL):
        with room_for(size):
            refused(capsys, command, "out.parquet")
        assert Path("out.parquet").read_bytes() == b"old"
        assert not list(tmp_path.glob("*.tmp"))
        assert main([*command, "--resume"]) == 0
        assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
        assert not Path("out.parquet.parts").exists()


def test_import_to_a_read_only_folder(faults, cifs, open_folder, capsys):
    shutil.copytree(cifs, open_folder / "cifs")
    with faults.injected_into("import", READ_ONLY):
        before = contents(open_folder)
        with read_only(open_folder):
            refused(capsys, ["import", "cifs", "out.parquet", "--workers=1"], "Permission denied")
        assert contents(open_folder) == before


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_embed(faults, parquet, weights, tmp_path, monkeypatch, capsys, ending, share):
    monkeypatch.chdir(tmp_path)
    out = Path(f"e.{ending}")
    command = ["embed", str(parquet), "--model", str(weights), "--accelerator=cpu", "--out", str(out)]
    assert main(command) == 0
    whole = contents(tmp_path)
    out.write_bytes(b"old")
    report = Path(f"{out}.report.json")
    report.write_bytes(b"old")
    with faults.injected_into("embed", FULL):
        with room_for(int(share * len(whole[out]))):
            refused(capsys, [*command, "--overwrite"], f"cannot write {out}", "choose another --out")
        assert contents(tmp_path) == {out: b"old", report: b"old"}
        assert main([*command, "--overwrite"]) == 0
        assert contents(tmp_path) == whole


def test_embed_to_a_read_only_folder(faults, parquet, weights, open_folder, capsys):
    for file in (parquet, weights):
        shutil.copy(file, open_folder)
    before = contents(open_folder)
    with faults.injected_into("embed", READ_ONLY):
        with read_only(open_folder):
            command = ["embed", parquet.name, "--model", weights.name, "--out", "e.csv", "--accelerator=cpu"]
            refused(capsys, command, "cannot write", "choose another --out")
        assert contents(open_folder) == before


def test_export(faults, finished, open_folder, capsys):
    command = ["export", str(finished / "runs/run/last.ckpt"), "--out", "tiny.safetensors", "--overwrite"]
    Path("tiny.safetensors").write_bytes(b"old")
    for size in (0, 1000):
        with faults.injected_into("export", FULL):
            with room_for(size):
                refused(capsys, command, "cannot write tiny.safetensors")
            assert contents(open_folder) == {Path("tiny.safetensors"): b"old"}


WRITERS = {
    "data set": (".parquet", lambda data, path: data.to_parquet(path)),
    "index sets": (".json", lambda data, path: save_index_sets(path, data, {"train": torch.arange(len(data))})),
    "embeddings": (".parquet", lambda data, path: write_embeddings(path, data.ids.to_pylist(), torch.ones(70, 4))),
    "tables and cards": (".md", lambda data, path: replace_file(path, "text\n" * 400)),
}


@pytest.mark.parametrize("size", [0, 300])
@pytest.mark.parametrize("name", list(WRITERS))
def test_files_that_are_written_whole(faults, parquet, tmp_path, name, size):
    ending, write = WRITERS[name]
    path = tmp_path / f"file{ending}"
    path.write_bytes(b"old")
    data = CrystalDataset.from_parquet(parquet)
    with faults.injected_into(name, FULL):
        with room_for(size), pytest.raises(OSError, match=r"\[Errno 27\]|too large"):
            write(data, path)
        assert contents(tmp_path) == {path.relative_to(tmp_path): b"old"}
        write(data, path)
        assert len(path.read_bytes()) > 300


def test_a_cache_of_graphs_serves_from_memory(faults, parquet, tmp_path, caplog):
    data, path = CrystalDataset.from_parquet(parquet), tmp_path / "graphs.npz"
    graph = NearestNeighbors(4)
    with faults.injected_into("cache of graphs", FULL):
        with room_for(1000):
            cache = GraphCache(data, graph, path)
        assert "the graphs are kept in memory alone" in caplog.text
        assert contents(tmp_path) == {}
        batch = data.gather(torch.arange(5))
        assert cache(batch).edge_dist.equal(graph(data.gather(torch.arange(5))).edge_dist)


def test_a_table_of_fits(faults, tmp_path):
    """A row that does not fit on the disk leaves no half of itself, and is added when there is room."""
    path = tmp_path / "fits.csv"
    table = FitTable(path, ("n",), ("mae",))
    table.add([{"n": 1, "mae": 0.5}])
    whole = path.read_bytes()
    rows = [{"n": n, "mae": 0.25} for n in range(2, 9)]
    for size in (len(whole), len(whole) + 3, len(whole) + 20):
        with faults.injected_into("table of fits", FULL):
            with room_for(size), pytest.raises(OSError, match=r"\[Errno 27\]"):
                table.add(rows)
            assert path.read_bytes() == whole
    table.add(rows)
    assert len(FitTable(path, ("n",), ("mae",))) == 8


def test_a_table_that_another_command_was_killed_in(faults, tmp_path):
    path = tmp_path / "fits.csv"
    table = FitTable(path, ("n",), ("mae",))
    table.add([{"n": 1, "mae": 0.5}])
    with faults.injected_into("table of fits", "half a line of another process"):
        with path.open("ab") as file:
            file.write(b"7,0.1")
        table.add([{"n": 2, "mae": 0.5}])
        assert path.read_text() == "n,mae\n1,0.5\n2,0.5\n"


def test_experiments(faults, finished, parquet, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["probe", str(finished / "runs/run/last.ckpt"), "--data", str(parquet), "--target=band_gap", "--out=out",
               "--sizes=8", "--draws=1", "--baselines=untrained", "--probes=ridge", "--readouts=global"]  # fmt: skip
    for size in (0, 60, 250):
        with faults.injected_into("probe", FULL), room_for(size):
            refused(capsys, command, "choose another --out")
    assert main(command) == 0
    assert Path("out/probes.csv").read_text().count("\n") == 3
