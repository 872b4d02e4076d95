"""The command ``pyg-dim import``."""

from __future__ import annotations

import json

import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim import cli
from pyg_dim.cli import main
from pyg_dim.data import load_dataset

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MIXED = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


@pytest.fixture
def cifs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifs").mkdir()
    SALT.to("cifs/salt.cif")
    MIXED.to("cifs/[red]mixed.cif")
    (tmp_path / "labels.csv").write_text("note,name,gap\nx,salt,5\n")
    return tmp_path


def test_all_of_its_options(cifs, capsys):
    flags = [
        "--labels=labels.csv",
        "--labels-id=name",
        "--unit",
        "gap=eV",
        "--max-sites=8",
        "--keep-cells",
        "--workers=1",
    ]
    assert main(["import", "cifs", "out.parquet", *flags]) == 0
    out = capsys.readouterr().out
    for text in (
        "read",
        "left out: partial occupancy",
        "[red]mixed",
        "kept, cell reduced",
        "out.report.json",
    ):
        assert text in out
    dataset = load_dataset("out.parquet")
    assert dataset.num_sites.tolist() == [8]
    assert dataset.target("gap").tolist() == [5]
    assert dataset.units == {"gap": "eV"}

    assert main(["import", "cifs/*.cif", "cifs/salt.cif", "out.parquet", "--overwrite", "--symprec=0.01"]) == 0
    assert load_dataset("out.parquet").num_sites.tolist() == [2]
    assert json.loads((cifs / "out.report.json").read_text())["left_out"]["identifier already taken"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out.parquet"], "no such file or folder: nowhere"),
        (["cifs", "out.csv"], "must end in .parquet"),
        (["cifs", "out.parquet", "--max-sites=0"], "max_sites must be at least 1"),
        (["cifs", "out.parquet", "--labels=nowhere.csv"], "no such file of labels"),
        (["cifs/[[]red]mixed.cif", "out.parquet"], "no usable crystal"),
        (["prototypes", "out.parquet"], "need no import"),
        (["matbench_steels", "out.parquet"], "has compositions but no structures"),
    ],
)
def test_user_errors_are_one_message_and_exit_with_1(cifs, capsys, arguments, message):
    assert main(["import", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (cifs / "out.parquet").exists()


@pytest.mark.parametrize(
    "arguments", [["cifs"], ["cifs", "out.parquet", "--unit=gap"], ["cifs", "o.parquet", "--fast"]]
)
def test_wrong_flags_exit_with_2(cifs, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(["import", *arguments])
    assert end.value.code == 2
    assert "usage: pyg-dim import" in capsys.readouterr().err


def test_ctrl_c_is_told_with_how_to_go_on(cifs, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyg_dim.data.workers.make_part", stop)
    assert main(["import", "cifs", "out.parquet"]) == 130
    captured = capsys.readouterr()
    assert "go on with --resume" in captured.out
    assert captured.err == "interrupted\n"
    monkeypatch.undo()
    monkeypatch.chdir(cifs)
    assert cli.main(["import", "cifs", "out.parquet", "--resume"]) == 0
