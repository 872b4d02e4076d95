from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from rich.console import Console

from pyg_dim.evaluate.compare import Run, compare, differences, shared_probes, tidy
from pyg_dim.evaluate.compare_figure import COLOURS, compare_figure, write_figure
from pyg_dim.evaluate.report import COLUMNS, probe_row
from pyg_dim.losses import JS_BASELINE

UNTRAINED, TRAINED = [1.0, 2.0, 3.0, 4.5, 5.0], [1.5, 1.0, 2.5, 3.0, 4.5]
"""Errors of five label subsets: four won, one lost, medians 3 and 2.5."""


def probes(*of: tuple[str, str, int, str]) -> pd.DataFrame:
    # Least squares, which is not shown, has a tenth of the errors.
    rows = [
        probe_row(name, readout, n, kind, *(np.array([TRAINED, UNTRAINED]) / (1 if kind == "ridge" else 10)), 9.0)
        for name, readout, n, kind in of
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64"})


def run(name: str, model: str = "cgcnn", **changes: object) -> Run:
    options = {"seed": 0, "split": "formula", "val_fraction": 0.1, "target": None, "kinds": "other,permutation"}
    part = "val" if changes.get("has_val", True) else "train"
    losses = {"total": 5.0, "kl/global": 2.0, "js/local": 1.25, "js/global": 1.5}
    values = {
        "name": name, "model": model, "objective": "deep_infomax", "options": options, "data": "a.parquet",
        "fingerprint": 17, "train": 360, "epochs": 3, "has_val": True, "parameters": 1000, "level_parameters": 200,
        "curves": {f"{part}/{key}": [value + 2, value + 1, value] for key, value in losses.items()}
        | {"crystals_per_second": [1.0, 321.0, 322.0], "detail/val/js": [1.0, 1.0, 1.0]},
        "probes": probes(("density", "global", 100, "least squares"), ("density", "global", 100, "ridge"),
                         ("density", "full", 100, "ridge"), ("density", "global", 1000, "ridge")),
    }  # fmt: skip
    return Run(**(values | changes))


def with_options(name: str, **changes: object) -> Run:
    plain = run(name)
    return replace(plain, options=dict(plain.options) | changes)


def text_of(runs, directory, width=100, left_out=None) -> str:
    out = io.StringIO()
    compare(runs, left_out or {}, directory, Console(file=out, width=width))
    return out.getvalue()


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells of each row by its name; the last of a name where several tables have it."""
    names = (
        "model", "training crystals", "epochs", "crystals seen", "parameters", "parameters of levels",
        "crystals/s (median)", "js/local", "js/global", "kl/local", "kl/global", "global, 100: untrained",
        "global, 100: trained", "global, 100: won-lost", "full, 100: trained", "global, 1000: trained",
    )  # fmt: skip
    found = {}
    for line in text.splitlines():
        for name in sorted(names, key=len, reverse=True):
            if line.startswith(name + " "):
                found[name] = line.removeprefix(name).split()
                break
    return found


def test_the_table_has_a_column_for_each_run(tmp_path):
    other = run(
        "b", "sitenet", parameters=5, curves={"val/js/local": [1.0], "crystals_per_second": [9.87654]}, epochs=1
    )
    text = text_of([run("a"), other], tmp_path)
    rows = rows_of(text)
    assert rows["model"] == ["cgcnn", "sitenet"]
    assert rows["training crystals"] == ["360", "360"]
    assert rows["epochs"] == ["3", "1"]
    assert rows["crystals seen"] == ["1080", "360"]
    assert rows["parameters"] == ["1000", "5"]
    assert rows["parameters of levels"] == ["200", "200"]
    assert rows["crystals/s (median)"] == ["321", "9.88"]
    assert rows["js/local"] == ["1.250", "1.000"]
    assert rows["js/global"] == ["1.500", "-"]
    assert rows["kl/global"] == ["2.000", "-"]
    assert "kl/local" not in rows
    assert rows["global, 100: untrained"] == ["3.00", "3.00"]
    assert rows["global, 100: trained"] == ["2.50", "2.50"]
    assert rows["global, 100: won-lost"] == ["4-1", "4-1"]
    assert rows["full, 100: trained"] == rows["global, 1000: trained"] == ["2.50", "2.50"]
    assert "has 1.386 (js)" in text
    assert "density (g/cm3)" in text
    assert "total" not in text


def test_it_says_what_must_not_be_compared(tmp_path):
    two = " ".join(text_of([run("a"), run("b", "sitenet")], tmp_path).split())
    assert "losses of different architectures must not be compared" in two
    assert "Probe errors can be compared between architectures" in two
    assert "median over the epochs" in two
    assert "warning" not in two
    one = " ".join(text_of([run("a"), run("b")], tmp_path).split())
    assert "different architectures must not" not in one


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (run("b", fingerprint=18), ["data", "checksum 00000011 (a)", "checksum 00000012 (b)", "nor probe errors"]),
        (run("b", epochs=2), ["crystals seen", "1080 (a)", "720 (b)"]),
        (with_options("b", seed=1), ["seed", "0 (a)", "1 (b)"]),
        (with_options("b", split="random"), ["split", "formula 0.1 (a)", "random 0.1 (b)"]),
        (with_options("b", val_fraction=0.2), ["split", "formula 0.2 (b)"]),
        (with_options("b", target="gap"), ["targets", "none (a)", "gap (b)"]),
        (with_options("b", kinds=["other"]), ["kinds of false samples", "other,permutation (a)", "other (b)"]),
    ],
)
def test_differences_beside_the_architecture_are_warned_of(other, told, tmp_path):
    (warning,) = differences([run("a"), other])
    assert warning.startswith("warning: the runs differ in ")
    assert all(text in warning for text in told), warning
    assert warning in " ".join(text_of([run("a"), other], tmp_path, width=1000).split())
    assert f"- **{warning}**" in (tmp_path / "compare.md").read_text()


def test_equal_runs_are_not_warned_of():
    same = with_options("b", kinds=["other", "permutation"], target=[])
    assert differences([run("a"), same, run("c", "sitenet")]) == []
    # False samples are no matter of a run on labels.
    assert differences([run("a"), replace(with_options("b", kinds="other"), objective="supervised")]) == []
    several = replace(with_options("b", kinds="other"), objective="fingerprint+deep_infomax")
    assert len(differences([run("a"), several])) == 1


def test_probes_that_all_runs_have_are_shown_and_the_others_named(tmp_path):
    fewer = run("b", probes=probes(("density", "global", 100, "ridge"), ("gap", "global", 100, "ridge")))
    shown = shared_probes([run("a"), fewer])
    assert shown[["name", "readout", "n"]].to_numpy().tolist() == [["density", "global", 100]]
    text = text_of([run("a"), fewer], tmp_path, width=1000)
    assert "full, 100:" not in text
    assert "global, 100: trained" in text
    assert "not shown: density, full, 100; density, global, 1000; gap, global, 100." in text


def test_a_run_without_validation_or_critics_has_gaps(tmp_path):
    blind = run("b", has_val=False, probes=probes())
    labelled = run(
        "c", objective="supervised", curves={"val/mae/gap": [0.5, 0.25, 0.125], "crystals_per_second": [1.0] * 3}
    )
    text = text_of([run("a"), blind, labelled], tmp_path)
    rows = rows_of(text)
    assert rows["js/local"] == ["1.250", "(val)", "1.250", "(train)", "-"]
    assert rows["global, 100: trained"] == ["2.50", "-", "2.50"]
    assert "0.1250 (val)" in text
    assert len(compare_figure([run("a"), blind, labelled]).axes) == 6
    assert "ridge" not in text_of([blind], tmp_path)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_many_runs_with_long_names_fit_the_screen(width, tmp_path):
    runs = [run(f"a-rather-long-name-of-run-[{k}]-{'x' * 30}") for k in range(7)]
    text = text_of(runs, tmp_path, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    at_once = {40: 1, 60: 2, 100: 4}[width]
    assert text.count("Runs (continued)") == math.ceil(7 / at_once) - 1
    assert text.count("360") == 7
    assert all(f"[{k}]" in text for k in range(7))


def test_csv_has_a_row_for_each_run_and_quantity(tmp_path):
    text_of([run("a"), run("b", "sitenet")], tmp_path)
    table = pd.read_csv(tmp_path / "compare.csv")
    pd.testing.assert_frame_equal(table, tidy([run("a"), run("b", "sitenet")]), check_dtype=False)
    assert not table.duplicated([column for column in table if column != "value"]).any()
    of_a = table[table["run"] == "a"]
    plain = of_a[of_a["target"].isna()].set_index("quantity")["value"].to_dict()
    assert plain == {
        "training_crystals": 360, "epochs": 3, "crystals_seen": 1080, "seed": 0, "encoder_parameters": 1000,
        "level_parameters": 200, "crystals_per_second_median": 321, "val/js/local": 1.25, "val/js/global": 1.5,
        "val/kl/global": 2.0,
    }  # fmt: skip
    one = of_a[(of_a["readout"] == "global") & (of_a["n"] == 100) & (of_a["probe"] == "least squares")]
    assert one.set_index("quantity")["value"].to_dict() == pytest.approx({
        "untrained_median": 0.3, "untrained_q25": 0.2, "untrained_q75": 0.45, "trained_median": 0.25,
        "trained_q25": 0.15, "trained_q75": 0.3, "baseline": 9.0, "wins": 4, "losses": 1,
    })  # fmt: skip
    assert set(one["unit"]) == {"g/cm3"}
    assert set(table["model"]) == {"cgcnn", "sitenet"}


def test_markdown_has_the_tables_and_what_was_left_out(tmp_path):
    text_of([run("a|b"), run("c")], tmp_path / "new", left_out={"d": "not finished"})
    text = (tmp_path / "new" / "compare.md").read_text()
    assert "|  | a\\|b | c |\n| :--- | ---: | ---: |\n" in text
    assert "| global, 100: trained | 2.50 | 2.50 |\n" in text
    assert "- left out: d: not finished\n" in text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["compare.csv", "compare.md"]


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def test_the_picture_shows_each_run_in_its_colour(tmp_path):
    runs = [run("a"), run("b", "sitenet")]
    figure = compare_figure(runs)
    shown = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert shown == [
        "val js/local", "val js/global", "crystals/s in training, median over epochs",
        "density, global readout, ridge", "density, full readout, ridge",
    ]  # fmt: skip
    first, second, baseline = panel(figure, "val js/local").get_lines()
    assert first.get_xdata().tolist() == [1, 2, 3]
    assert first.get_ydata().tolist() == [3.25, 2.25, 1.25]
    assert same_color(first.get_color(), COLOURS[0])
    assert same_color(second.get_color(), COLOURS[1])
    assert set(baseline.get_ydata()) == {JS_BASELINE}
    bars = panel(figure, "crystals/s in training, median over epochs").patches
    assert [bar.get_width() for bar in bars] == [321, 321]
    assert all(same_color(bar.get_facecolor(), colour) for bar, colour in zip(bars, COLOURS, strict=False))

    axes = panel(figure, "density, global readout, ridge")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "1000"]
    points = [container.lines[0] for container in axes.containers]
    # Two sizes, two encoders, two runs; the untrained one is open.
    assert [float(point.get_ydata()[0]) for point in points] == [3.0, 2.5] * 4
    assert [point.get_markerfacecolor() == "white" for point in points] == [True, False] * 4
    places = np.array([float(point.get_xdata()[0]) for point in points])
    assert len(set(places.round(6))) == 8
    quartiles = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert quartiles.tolist() == [2.0, 4.5]
    colours = [point.get_markeredgecolor() for point in points]
    assert all(same_color(colour, COLOURS[0]) for colour in colours[:4])
    assert all(same_color(colour, COLOURS[1]) for colour in colours[4:])

    write_figure(runs, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["compare.png"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_readout_begins_a_row_of_the_picture_where_there_are_several_targets():
    both = [(name, readout, 100, "ridge") for name in ("density", "gap") for readout in ("global", "full")]
    figure = compare_figure([run("a", probes=probes(*both))])
    rows = [[axes.get_title() for axes in figure.axes[start : start + 3]] for start in (3, 6)]
    assert rows[0] == ["density, global readout, ridge", "gap, global readout, ridge", ""]
    assert rows[1] == ["density, full readout, ridge", "gap, full readout, ridge", ""]
