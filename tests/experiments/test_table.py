from __future__ import annotations

import numpy as np
import pytest

from pyg_dim.experiments.table import FitTable

KEYS, VALUES = ("task", "n"), ("mae", "chosen")


def row(n: int, mae: float = 0.5, chosen: str = "", task: str = "gap") -> dict:
    return {"task": task, "n": n, "mae": mae, "chosen": chosen}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "fits.csv"


def test_rows_are_on_disk_at_once_and_known_to_the_next_table(path):
    table = FitTable(path, KEYS, VALUES)
    assert len(table) == 0
    table.add([row(50, 0.1234567891), row(100, np.float64(2.0), 'ridge 0.5, "trees" 0.5')])
    lines = path.read_text().splitlines()
    assert lines == ["task,n,mae,chosen", "gap,50,0.12345679,", 'gap,100,2,"ridge 0.5, ""trees"" 0.5"']
    again = FitTable(path, KEYS, VALUES)
    assert len(again) == 2
    assert row(50) in again
    assert row(51) not in again
    assert row(50, task="energy") not in again
    again.add([row(250, 0.3)])
    frame = again.read()
    assert list(frame.columns) == [*KEYS, *VALUES]
    assert frame["mae"].tolist() == [0.12345679, 2.0, 0.3]
    assert frame["chosen"].tolist() == ["", 'ridge 0.5, "trees" 0.5', ""]


def test_a_key_is_added_once(path):
    table = FitTable(path, KEYS, VALUES)
    table.add([row(50, 1.0), row(100, 2.0), row(50, 3.0)])
    table.add([row(100, 4.0), row(250, 5.0)])
    assert len(table) == 3
    assert table.read()["mae"].tolist() == [1.0, 2.0, 5.0]
    FitTable(path, KEYS, VALUES).add([row(50, 6.0)])
    assert FitTable(path, KEYS, VALUES).read()["mae"].tolist() == [1.0, 2.0, 5.0]


def test_an_error_that_is_no_number_is_read_as_such(path):
    table = FitTable(path, KEYS, VALUES)
    table.add([row(50, float("nan")), row(100, 1.0)])
    assert np.isnan(table.read()["mae"][0])


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_that_was_cut_short_is_made_again(path, cut):
    table = FitTable(path, KEYS, VALUES)
    table.add([row(50), row(100)])
    whole = path.read_bytes()
    assert whole.endswith(b"gap,100,0.5,\n")
    path.write_bytes(whole[:-cut])
    table = FitTable(path, KEYS, VALUES)
    assert len(table) == 1
    assert row(100) not in table
    table.add([row(100)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("contents", [b"", b"task,n,m", b"task,n,mae,chosen"])
def test_a_header_that_was_cut_short_is_made_again(path, contents):
    path.parent.mkdir()
    path.write_bytes(contents)
    assert len(FitTable(path, KEYS, VALUES)) == 0
    assert path.read_text() == "task,n,mae,chosen\n"


@pytest.mark.parametrize("contents", ["task,n,mae\ngap,50,1", "id,formula\n1,NaCl", "notes of mine"])
def test_another_table_is_refused_and_left_as_it_is(path, contents):
    path.parent.mkdir()
    path.write_text(contents)
    with pytest.raises(ValueError, match=r"fits\.csv is another table than this study writes.*choose --out"):
        FitTable(path, KEYS, VALUES)
    assert path.read_text() == contents
