"""The tables say what the fits say."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from pyg_dim.evaluate.regressors import AUTO, BLEND, DUMMY, LEAST_SQUARES, RIDGE
from pyg_dim.experiments import probing, transferring
from pyg_dim.experiments.page import probe_text, transfer_text, write_tables
from pyg_dim.experiments.study import FORMATION
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.transferring import RANDOM

ABOUT = {"unit": "eV/atom", "chosen": "", "seconds": 1.0, "labels": 50, "tests": 99, "seed": 0, "data": "some.parquet"}
ERRORS = {
    ("magpie", DUMMY): 1.0,
    ("magpie", RIDGE): 0.30,
    ("magpie", BLEND): 0.40,
    ("dim global", LEAST_SQUARES): 0.5,
    ("dim global", BLEND): 0.45,
    ("dim global", AUTO): 0.46,
    ("untrained global", LEAST_SQUARES): 0.6,
    ("untrained global", BLEND): 0.44,
    ("combined", BLEND): 0.35,
    ("combined+magpie", BLEND): 0.25,
}


def probe_rows(study="representations", errors=ERRORS, draws=8):
    return [
        {"study": study, "task": FORMATION, "n": 50, "draw": draw, "features": features, "probe": probe,
         "mae": error + 0.01 * draw, **ABOUT}
        for draw in range(draws)
        for (features, probe), error in errors.items()
    ]  # fmt: skip


def transfer_rows():
    about = {"unit": "eV/atom", "holdout": 0.1, "epochs": 9, "best_epoch": 3, "seconds": 1.0, "labels": 50, "tests": 99,
             "seed": 0, "data": "some.parquet"}  # fmt: skip
    return [
        {"study": "transfer", "task": FORMATION, "n": 50, "draw": draw, "start": start, "mae": error, **about}
        for draw in range(6)
        for start, error in ((RANDOM, 0.5), ("combined", 0.4))
    ]


@pytest.fixture
def filled(study):
    study.probe_table().add(probe_rows())
    ablation = {("all", LEAST_SQUARES): 0.3, ("other", LEAST_SQUARES): 0.4, ("untrained", LEAST_SQUARES): 0.2}
    study.probe_table().add(probe_rows("ablation", ablation))
    study.transfer_table().add(transfer_rows())
    return study


def section(text, name):
    return text.split(f"## {name}-random\n")[1].split("\n## ")[0]


def row(text, start):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("| ").split(" | ")]


def test_representations_show_medians_and_quartiles_of_the_blend(filled):
    text = section(write_tables(filled).read_text(), "representations")
    assert "some.parquet, 8 draws, 99 test crystals, seed 0" in text
    assert row(text, "magpie")[1] == "0.435 [0.417, 0.453]"
    assert row(text, "mean of the labels")[1] == "1.04 [1.02, 1.05]"


def test_cells_compare_by_the_same_rule_and_in_hindsight(filled):
    cells = row(section(write_tables(filled).read_text(), "cells"), FORMATION)
    assert cells[1:4] == ["50", "0.435 / 0.335 (ridge)", "0.385"]
    assert cells[4] == "better, -0.05 [-0.05, -0.05], 8-0-0"
    assert cells[5] == "worse, +0.05 [+0.05, +0.05], 0-0-8"
    assert cells[7].startswith("better, -0.15")
    assert cells[8].startswith("better, -0.05")


def test_claims_hold_or_not(filled):
    lines = section(write_tables(filled).read_text(), "claims").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| formation")]
    held = {cells[0]: cells[-1] for cells in rows}
    assert held["formation energy: trained (global, least squares) beats untrained global"] == "yes"
    assert held["formation energy: trained (global, blend) beats untrained global"] == "no"
    assert held["formation energy: all kinds beat 'other' (least squares)"] == "yes"
    assert held["formation energy: all kinds beat 'untrained' (least squares)"] == "no"


def test_few_draws_decide_no_claim(study):
    study.probe_table().add(probe_rows(draws=4))
    text = section(write_tables(study).read_text(), "claims")
    first = next(line for line in text.splitlines() if line.startswith("| formation energy"))
    assert first.endswith("| too few draws |")


def test_a_page_is_filled_between_its_markers_and_nowhere_else(filled, tmp_path, caplog):
    names = ("representations", "probes", "cells", "ablation", "claims", "transfer")
    page = tmp_path / "page.md"
    page.write_text("before\n" + "".join(f"<!-- begin: {n}-random -->\n<!-- end: {n}-random -->\n" for n in names))
    write_tables(filled, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- begin: representations-random -->\n\n**formation_energy_per_atom** (eV/atom)")
    write_tables(filled, page)
    assert page.read_text() == text
    page.write_text("nothing")
    with caplog.at_level(logging.WARNING):
        write_tables(filled, page)
    assert page.read_text() == "nothing"
    assert "has no place for the table of 'representations-random'" in caplog.text
    page.write_text("<!-- begin: cells-random -->\n")
    with pytest.raises(ValueError, match="no place for the table of 'cells-random'"):
        write_tables(filled, page)


def test_without_fits_there_are_no_sections(study):
    assert write_tables(study).read_text().strip() == ""


def test_texts_of_commands(tmp_path):
    table = FitTable(tmp_path / "p.csv", probing.KEYS, probing.VALUES)
    table.add(probe_rows("any"))
    title, text = probe_text(table.read())
    assert title.endswith("every probe, median [quartiles]")
    assert row(text, "magpie, ridge") == ["magpie, ridge", "0.335 [0.318, 0.352]"]
    assert row(text, "mean of the labels")[1] == "1.04 [1.02, 1.05]"
    assert "dummy" not in text
    table = FitTable(tmp_path / "t.csv", transferring.KEYS, transferring.VALUES)
    table.add(transfer_rows())
    title, text = transfer_text(table.read())
    assert row(text, "combined")[1] == "0.400 [0.400, 0.400]; better, -0.1 [-0.1, -0.1], 6-0-0"
    assert list(transfer_text(pd.DataFrame(columns=[*transferring.KEYS, *transferring.VALUES]))) == []
