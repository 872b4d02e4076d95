from __future__ import annotations

import logging
import shutil
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from pyg_dim.cli import main
from pyg_dim.models import MODELS

FLAGS = [
    "--data=prototypes", "--limit=60", "--epochs=2", "--batch-sites=150", "--val-fraction=0.2", "--no-compile",
    "--accelerator=cpu",
]  # fmt: skip
TINY = {
    "cgcnn": ["--encoder.site_channels=8", "--encoder.convolutions=1", "--encoder.crystal_channels=8"],
    "sitenet": [
        "--encoder.site_channels=8", "--encoder.pair_channels=8", "--encoder.attention_hidden=[8]",
        "--encoder.value_hidden=[8]", "--encoder.local_channels=8", "--encoder.pre_pool=[8]",
        "--encoder.post_pool=[8,8]", "--encoder.supercell_sites=8",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with runs of two architectures on 60 prototypes."""
    logdir = tmp_path_factory.mktemp("trained") / "runs"
    for model, flags in TINY.items():
        assert main(["train", f"--model={model}", f"--logdir={logdir}", *FLAGS, *flags]) == 0
    return logdir


@pytest.fixture
def runs(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(logging.getLogger("pyg_dim"), "handlers", [])
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def lines_of(text: str, start: str) -> list[list[str]]:
    return [line.removeprefix(start).split() for line in text.splitlines() if line.startswith(start)]


def test_two_architectures_are_compared(runs, capsys):
    assert main(["compare", str(runs)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    text = captured.out
    assert max(map(len, text.splitlines())) <= 100 + len(str(runs))
    assert ["cgcnn", "sitenet"] in lines_of(text, "model ")
    assert "warning" not in text
    assert "left out" not in text
    assert f"saved in {runs}: compare.csv, compare.md, compare.png" in text

    table = pd.read_csv(runs / "compare.csv").set_index(["model", "quantity"])["value"]
    for model in TINY:
        folder = runs / f"{model}-deep-infomax-prototypes-1"
        summary = pd.read_csv(folder / "summary.csv")
        losses = summary[summary["section"] == "loss"].set_index("name")["val"]
        for name in ("js/local", "js/global", "kl/local", "kl/global"):
            assert table[model, f"val/{name}"].item() == pytest.approx(losses[name], rel=1e-6)
        probes = summary[summary["section"] == "probe"]
        assert sorted(table[model, "trained_median"]) == pytest.approx(sorted(probes["trained_median"]))
        assert sorted(table[model, "wins"]) == sorted(probes["wins"])
        assert f"{losses['js/local']:.3f}" in [cell for row in lines_of(text, "js/local ") for cell in row]
        ridge = probes[(probes["probe"] == "ridge") & (probes["readout"] == "full")]
        for row in ridge.to_dict("records"):
            start = f"full, {int(row['n'])}: won-lost "
            assert f"{int(row['wins'])}-{int(row['losses'])}" in [c for cells in lines_of(text, start) for c in cells]
    assert matplotlib.image.imread(runs / "compare.png").ndim == 3
    assert not list(runs.glob("*.tmp"))


def test_a_single_run_and_a_folder_for_the_files(runs, tmp_path, capsys):
    one = runs / "cgcnn-deep-infomax-prototypes-1"
    before = sorted(one.iterdir())
    assert main(["compare", str(one), "--out", str(tmp_path / "new" / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "compare.csv", "compare.md", "compare.png"
    ]  # fmt: skip
    assert sorted(one.iterdir()) == before
    assert ["cgcnn"] in lines_of(capsys.readouterr().out, "model ")


def test_the_files_lie_in_the_first_folder(runs):
    first, second = sorted(runs.iterdir())
    assert main(["compare", str(second), str(first)]) == 0
    assert (second / "compare.png").exists()
    assert not (first / "compare.png").exists()
    # A second time: the files of the first are neither runs nor in the way.
    assert main(["compare", str(second), str(first)]) == 0


def test_a_run_that_is_not_finished_is_named(runs, capsys):
    (runs / "cgcnn-deep-infomax-prototypes-1" / "last.ckpt").write_bytes(b"half of it")
    assert main(["compare", str(runs)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "left out: cgcnn-deep-infomax-prototypes-1: " in text
    assert "is not a readable checkpoint" in text
    assert "left out: cgcnn" in (runs / "compare.md").read_text()
    assert set(pd.read_csv(runs / "compare.csv")["model"]) == {"sitenet"}


def test_other_seeds_are_warned_of(runs, capsys, trained):
    flags = ["--model=cgcnn", "--seed=1", f"--logdir={runs}", "--name=seed-1", *FLAGS, *TINY["cgcnn"]]
    assert main(["train", *flags]) == 0
    capsys.readouterr()
    assert main(["compare", str(runs)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "warning: the runs differ in seed: 0 (cgcnn-deep-infomax-prototypes-1, sitenet-" in text
    assert "1 (seed-1)" in text
    assert "warning: the runs differ in data: checksum" in text


def test_errors_are_one_line_and_exit_with_1(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "error: no folder "),
        ([str(tmp_path / "file")], "is a file: give the folder of the run"),
        ([str(tmp_path / "empty")], "error: no finished run: "),
        ([str(runs), "--out", str(tmp_path / "file" / "out")], "error: cannot write to "),
    ):
        assert main(["compare", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    for path in runs.glob("*/last.ckpt"):
        path.unlink()
    assert main(["compare", str(runs)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: no finished run: cgcnn-deep-infomax-prototypes-1: not finished: it has no last.ckpt"
    )
    assert "sitenet-deep-infomax-prototypes-1: not finished" in error
    assert not (runs / "compare.csv").exists()


def test_models_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {name for name in MODELS for line in lines if line.split()[:1] == [name]} == set(MODELS)
    assert max(map(len, lines)) <= 100
    with pytest.raises(SystemExit) as stop:
        main(["models", "--all"])
    assert stop.value.code == 2
