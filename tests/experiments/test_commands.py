"""The commands, on real runs that take seconds."""

from __future__ import annotations

import pandas as pd
import pytest

from pyg_dim.cli import main
from pyg_dim.experiments.study import FORMATION


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
    assert "| tiny |" in capsys.readouterr().out
    assert main([*command, "--lr", "0"]) == 1
    assert "lr must be positive" in capsys.readouterr().err


def test_reproduce_writes_tables_of_nothing(parquet, tmp_path):
    command = ["reproduce", "tables", "--data", str(parquet), "--phonons", str(parquet), "--scale", "smoke"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "tables-random.md").exists()


def test_a_folder_that_cannot_be_made_is_named(parquet, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ["reproduce", "fig8", "--data", str(parquet), "--phonons", str(parquet), "--out", str(tmp_path / "file")]
    assert main(command) == 1
    assert "choose --out" in capsys.readouterr().err
