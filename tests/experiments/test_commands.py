"""The commands, on real runs that take seconds."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from pyg_dim.cli import main
from pyg_dim.data import save_index_sets
from pyg_dim.experiments.study import FORMATION
from pyg_dim.experiments.table import FitTable
from pyg_dim.training import export, pretrained
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.run import train


@pytest.fixture
def options_of(parquet, tmp_path):
    """``options_of(limit=60, ...)``: options of a run of a second with the encoder of the tests."""

    def make(**changes):
        small = {"site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8],
                 "local_channels": 8, "pre_pool": [8], "post_pool": [8, 8], "supercell_sites": 8}  # fmt: skip
        values = {"data": str(parquet), "epochs": 1, "batch_sites": 48, "accelerator": "cpu", "compile": False,
                  "logdir": str(tmp_path / "runs"), "encoder": small}  # fmt: skip
        return TrainOptions(**(values | changes))

    return make


def test_probe_writes_rows_and_a_table_and_goes_on(finished, parquet, tmp_path, capsys):
    command = [
        "probe", str(finished.checkpoint), "--data", str(parquet), "--target", FORMATION, "--val-fraction", "0.3",
        "--sizes", "10,20", "--draws", "2", "--readouts", "global,decoded+magpie", "--out", str(tmp_path),
        "--probes", "dummy,ridge,blend", "--baselines", "magpie",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "probes.csv")
    assert len(frame) == 3 * 2 * 2 * 3
    assert set(frame["features"]) == {"magpie", "tiny global", "tiny decoded+magpie"}
    assert frame["tests"].nunique() == 1
    assert "| tiny global, ridge |" in shown
    assert "in brackets the quartiles" in shown
    assert (tmp_path / "probes.md").read_text().strip() in shown.replace("\r", "")
    before = (tmp_path / "probes.csv").read_text()
    assert main([*command[:-1], "magpie"]) == 0
    assert (tmp_path / "probes.csv").read_text() == before


def test_probe_needs_what_there_is(finished, parquet, tmp_path, capsys):
    command = ["probe", str(finished.checkpoint), "--data", str(parquet), "--target", FORMATION, "--out", str(tmp_path)]
    assert main([*command, "--probes", "oracle"]) == 1
    assert "--probes oracle: unknown; known: dummy, least squares" in capsys.readouterr().err
    assert main([*command, "--split", "random", "--val-fraction", "0"]) == 1
    assert "the test part is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main([*command, "--sizes", "some"])
    assert error.value.code == 2
    wrong = [*command[:5], "hardness", *command[6:]]
    assert main(wrong) == 1
    assert "no target column 'hardness'" in capsys.readouterr().err


def test_transfer_compares_with_random(finished, parquet, tmp_path, capsys):
    command = ["transfer", str(finished.checkpoint), "--data", str(parquet), "--target", FORMATION, "--val-fraction",
               "0.3", "--sizes", "10", "--draws", "1", "--epochs", "2", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    frame = pd.read_csv(tmp_path / "transfer.csv")
    assert list(frame["start"]) == ["random", "tiny"]
    assert (frame["epochs"] <= 2).all()
    shown = capsys.readouterr()
    assert "| tiny |" in shown.out
    assert "against the row random (new parameters)" in shown.out
    assert "won - tied - lost" in (tmp_path / "transfer.md").read_text()
    assert main([*command, "--lr", "0"]) == 1
    assert "lr must be positive" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["probe", "transfer"])
def test_sizes_that_do_not_fit_are_an_error(finished, parquet, tmp_path, caplog, capsys, name):
    command = [name, str(finished.checkpoint), "--data", str(parquet), "--target", FORMATION, "--val-fraction", "0.2",
               "--draws", "1", "--out", str(tmp_path), "--sizes"]  # fmt: skip
    assert main([*command, "200,1000"]) == 1
    said = capsys.readouterr().err
    assert f"--sizes 200,1000: 96 labels '{FORMATION}' are left to draw from, beside 24 in the test" in said
    assert "sizes up to 96 fit, as in --sizes 32,64" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 50,100,250,1000)" in shown
    if name == "transfer":
        assert "all are compared with the row random, an encoder built like the first one, with new random" in shown


def test_reproduce_writes_tables_of_nothing(parquet, tmp_path):
    command = ["reproduce", "tables", "--data", str(parquet), "--phonons", str(parquet), "--scale", "smoke"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "tables-random.md").exists()


def test_a_folder_that_cannot_be_made_is_named(parquet, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ["reproduce", "fig8", "--data", str(parquet), "--phonons", str(parquet), "--out", str(tmp_path / "file")]
    assert main(command) == 1
    assert "choose another --out" in capsys.readouterr().err


def test_another_setting_is_not_added_to_a_table(finished, parquet, tmp_path, capsys):
    command = ["transfer", str(finished.checkpoint), "--data", str(parquet), "--target", FORMATION, "--val-fraction",
               "0.3", "--sizes", "10", "--draws", "1", "--epochs", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    assert main([*command, "--lr", "1e-2"]) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert main([*command, "--val-fraction", "0.4"]) == 1
    said = capsys.readouterr().err
    assert "transfer.json tells of a study that differs in parts (which crystals are the test): rows of both" in said
    told = json.loads((tmp_path / "transfer.json").read_text())
    assert {"crystals", "labels", "checkpoint tiny"} <= told.keys()
    # A folder of the first versions has one checksum for all.
    old = {name: told[name] for name in ("target", "seed", "crystals, labels and parts")}
    (tmp_path / "transfer.json").write_text(json.dumps(old))
    assert main([*command, "--val-fraction", "0.4"]) == 1
    assert "differs in crystals, labels and parts:" in capsys.readouterr().err
    assert main(command) == 0


def test_checkpoints_need_names_of_their_own(finished, parquet, tmp_path, capsys):
    command = [
        "probe",
        str(finished.checkpoint),
        str(finished.checkpoint),
        "--data",
        str(parquet),
        "--target",
        FORMATION,
    ]
    assert main([*command, "--out", str(tmp_path)]) == 1
    assert "would be called 'tiny'" in capsys.readouterr().err


def test_the_test_is_the_validation_part_of_the_run(parquet, tmp_path, options_of, capsys):
    """With its --limit, which decides on the parts as well."""
    checkpoint = train(options_of(limit=60, val_fraction=0.25, name="limited")).directory / "last.ckpt"
    other = train(options_of(limit=60, val_fraction=0.25, name="other", seed=5)).directory / "last.ckpt"
    command = ["--data", str(parquet), "--target", FORMATION, "--sizes", "10", "--draws", "1", "--probes", "ridge"]
    assert main(["probe", str(checkpoint), *command, "--out", str(tmp_path / "a")]) == 0
    assert set(pd.read_csv(tmp_path / "a" / "probes.csv")["tests"]) <= {14, 15, 16}
    assert main(["probe", str(checkpoint), str(other), *command, "--out", str(tmp_path / "b")]) == 1
    assert "other was trained on" in capsys.readouterr().err


def test_encoders_come_by_name_and_as_weights_files(finished, parquet, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "handed-on.safetensors"
    export(finished.checkpoint, weights)
    monkeypatch.setattr(pretrained, "shipped_encoders", lambda: {"handed-on": weights})
    task = ["--data", str(parquet), "--target", FORMATION, "--val-fraction", "0.3", "--sizes", "10", "--draws", "1"]
    probe = [*task, "--probes", "ridge", "--readouts", "global", "--baselines", "untrained"]
    errors = {}
    for start in (str(finished.checkpoint), str(weights), "handed-on"):
        out = tmp_path / str(len(errors))
        assert main(["probe", start, *probe, "--out", str(out)]) == 0
        frame = pd.read_csv(out / "probes.csv")
        errors[start] = dict(zip(frame["features"], frame["mae"], strict=True))
    of_run, of_file, of_name = errors.values()
    assert of_file == of_name
    assert set(of_name) == {"handed-on global", "handed-on untrained global"}
    assert of_run["tiny global"] == of_name["handed-on global"]
    assert of_run["tiny untrained global"] == of_name["handed-on untrained global"]
    assert main(["transfer", "handed-on", *task, "--epochs", "1", "--out", str(tmp_path / "t")]) == 0
    assert list(pd.read_csv(tmp_path / "t" / "transfer.csv")["start"]) == ["random", "handed-on"]
    assert main(["probe", "handed-on", str(weights), *probe, "--out", str(tmp_path)]) == 1
    assert f"two of what is compared would be called 'handed-on': rename {weights}" in capsys.readouterr().err
    assert main(["probe", "unheard", *probe, "--out", str(tmp_path)]) == 1
    assert "there is no encoder 'unheard'" in capsys.readouterr().err


def test_parts_that_a_file_had_are_asked_for(parquet, dataset, tmp_path, options_of, capsys):
    """A weights file tells the name of that file, not its place."""
    parts = tmp_path / "parts.json"
    save_index_sets(parts, dataset, {"train": torch.arange(80), "val": torch.arange(80, 120)})
    checkpoint = train(options_of(split=str(parts), name="given")).directory / "last.ckpt"
    export(checkpoint, tmp_path / "given.safetensors")
    other = str(train(options_of(name="other", val_fraction=0.2)).directory / "last.ckpt")
    task = ["--data", str(parquet), "--target", FORMATION, "--sizes", "10", "--draws", "1", "--probes", "ridge"]
    task += ["--readouts", "global", "--baselines", ""]
    given = str(tmp_path / "given.safetensors")
    assert main(["probe", given, *task, "--out", str(tmp_path / "a")]) == 1
    assert (
        "given was trained on the parts of parts.json, which is not here: say with --split" in capsys.readouterr().err
    )
    assert main(["probe", given, *task, "--split", str(parts), "--out", str(tmp_path / "a")]) == 0
    assert set(pd.read_csv(tmp_path / "a" / "probes.csv")["tests"]) == {40}
    assert main(["probe", other, given, *task, "--out", str(tmp_path / "b")]) == 0


def test_what_cannot_be_written_is_named(finished, parquet, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "probes.csv")

    monkeypatch.setattr(FitTable, "add", full)
    command = [
        "probe",
        str(finished.checkpoint),
        "--data",
        str(parquet),
        "--target",
        FORMATION,
        "--val-fraction",
        "0.3",
    ]
    assert main([*command, "--sizes", "10", "--draws", "1", "--out", str(tmp_path)]) == 1
    assert "cannot write or read probes.csv: No space left on device; choose another --out" in capsys.readouterr().err
