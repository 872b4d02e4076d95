from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.evaluate.regressors import BLEND, DUMMY, GAUSSIAN_PROCESS, LEAST_SQUARES, RIDGE
from pyg_dim.experiments.pictures import boxes_figure, draw_boxes
from pyg_dim.experiments.study import FORMATION, GAP

DRAWS = 8
PNG = b"\x89PNG\r\n\x1a\n"


def probe_rows(name: str, probes: dict[str, tuple[str, ...]], tasks=(FORMATION, GAP), sizes=(50, 100)) -> pd.DataFrame:
    """Fits whose errors are around 1 for the mean, 0.4 for regularised probes and 0.9 or 50 for least squares."""
    generator = np.random.default_rng(0)
    rows = []
    for task in tasks:
        for n in sizes:
            for draw in range(DRAWS):
                for features, names in probes.items():
                    for probe in names:
                        mae = {DUMMY: 1.0, LEAST_SQUARES: 50.0 if draw < 5 else 0.9}.get(probe, 0.4)
                        rows.append({
                            "study": name, "task": task, "n": n, "draw": draw, "features": features, "probe": probe,
                            "mae": mae * generator.uniform(0.95, 1.05), "unit": "eV", "labels": n,
                            "tests": 12 - (features == "ofm"), "seed": 0, "data": "binaries.parquet",
                        })  # fmt: skip
    return pd.DataFrame(rows)


REPRESENTATIONS = probe_rows(
    "representations",
    {"magpie": (DUMMY, LEAST_SQUARES, RIDGE, BLEND), "dim full": (RIDGE, BLEND), "ofm": (LEAST_SQUARES, BLEND)},
)
TRANSFER = pd.DataFrame(
    {
        "study": "transfer", "task": FORMATION, "n": 50, "draw": [0, 0, 0, 1, 1, 1], "seed": [0, 0, 0, 1, 1, 1],
        "start": ["random", "combined", "supervised on another target"] * 2, "mae": [3.0, 1.0, 2.0, 5.0, 2.0, 4.0],
        "unit": "eV/atom", "labels": 50, "tests": 12, "data": "binaries.parquet",
    }
)  # fmt: skip


def boxes(axes) -> list[tuple[float, str]]:
    """Centre and colour of each box."""
    found = []
    for patch in axes.patches:
        x = patch.get_path().vertices[:-1, 0]
        found.append((float((x.min() + x.max()) / 2), patch.get_facecolor()[:3]))
    return found


def test_probes_are_boxes_side_by_side(study):
    figure = boxes_figure(REPRESENTATIONS, "representations", "features", (FORMATION, GAP), "random")
    assert len(figure.axes) == 4
    title = figure.get_suptitle()
    assert title == "representations: binaries.parquet, split random\nboxes over 8 draws of the labels, seed 0"
    for axes, (task, n) in zip(figure.axes, [(FORMATION, 50), (FORMATION, 100), (GAP, 50), (GAP, 100)], strict=True):
        assert axes.get_title() == f"{task}\n{n} labels, 11 to 12 tests"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["dim full", "magpie", "ofm"]
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {90.0}
        centres, colours = zip(*boxes(axes), strict=True)
        # Without least squares the box stands in the middle; ridge is in the table alone.
        assert centres == pytest.approx([0, 0.79, 1.21, 1.79, 2.21])
        assert len(set(colours)) == 2
        assert colours[0] == colours[2] == colours[4]
    assert figure.axes[0].get_ylabel() == "mean absolute error (eV)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [LEAST_SQUARES, BLEND]


def test_axes_end_where_least_squares_leaves_them_and_say_so():
    figure = boxes_figure(REPRESENTATIONS, "representations", "features", (FORMATION,), "random")
    for axes, n in zip(figure.axes, (50, 100), strict=True):
        cell = REPRESENTATIONS[(REPRESENTATIONS["n"] == n) & (REPRESENTATIONS["task"] == FORMATION)]
        mean = cell.loc[cell["probe"] == DUMMY, "mae"].median()
        assert axes.get_ylim() == pytest.approx((0, 1.5 * mean))
        texts = [text.get_text() for text in axes.texts]
        assert texts == ["5 above", "5 above", "mean of the labels"]
        assert mean in [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]


def test_without_the_mean_axes_end_above_the_other_probes():
    probes = dict.fromkeys(("all", "other+composition"), (LEAST_SQUARES, RIDGE, GAUSSIAN_PROCESS))
    rows = probe_rows("ablation", probes, (GAP,), (50,))
    (axes,) = boxes_figure(rows, "ablation", "features", (GAP,), "formula").axes
    regularised = rows[rows["probe"] != LEAST_SQUARES].groupby(["features", "probe"])["mae"].median()
    assert axes.get_ylim() == pytest.approx((0, 3 * regularised.max()))
    assert len(boxes(axes)) == 4
    # Where all is in sight, axes end where it does.
    inside = rows[rows["mae"] < 10]
    (axes,) = boxes_figure(inside, "ablation", "features", (GAP,), "formula").axes
    assert inside["mae"].max() < axes.get_ylim()[1] < 1.2
    assert not axes.texts


def test_starts_are_boxes_of_one_colour():
    (axes,) = (figure := boxes_figure(TRANSFER, "transfer", "start", (FORMATION,), "random")).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["combined", "random", "supervised on\nanother target"]
    assert len({colour for _, colour in boxes(axes)}) == 1
    assert not figure.legends
    assert figure.get_suptitle().endswith("boxes over 2 draws of the labels, seed 0 to 1")
    level = {line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert {1.5, 3.0, 4.0} <= level


def test_the_png_is_written_and_logged(study):
    path = draw_boxes(study, REPRESENTATIONS, "representations", "features", (GAP,))
    assert path == study.directory / "representations-band_gap-random.png"
    assert path.read_bytes().startswith(PNG)
    other = draw_boxes(study, TRANSFER, "transfer", "start", (FORMATION, "last phdos peak"))
    assert other.name == "transfer-formation_energy_per_atom-last-phdos-peak-random.png"
    assert sorted(file.name for file in study.directory.iterdir()) == sorted([path.name, other.name, "tensorboard"])
    events = EventAccumulator(str(study.directory / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == [f"representations/{path.stem}", f"transfer/{other.stem}"]
    scalars = events.Scalars(f"representations/random/{GAP}/magpie/{BLEND}")
    assert [scalar.step for scalar in scalars] == [50, 100]
    chosen = REPRESENTATIONS[(REPRESENTATIONS["task"] == GAP) & (REPRESENTATIONS["features"] == "magpie")]
    medians = chosen[chosen["probe"] == BLEND].groupby("n")["mae"].median()
    assert [scalar.value for scalar in scalars] == pytest.approx(medians.tolist(), rel=1e-6)
    assert events.Scalars(f"transfer/random/{FORMATION}/combined")[0].value == 1.5
    assert len(events.Tags()["scalars"]) == 5 + 3


@pytest.mark.parametrize(("name", "task"), [("ablation", GAP), ("representations", "last phdos peak")])
def test_a_table_without_such_fits_is_an_error(study, name, task):
    message = re.escape(f"the table has no fits to draw of the study '{name}' and the tasks {task}")
    with pytest.raises(ValueError, match=message):
        draw_boxes(study, REPRESENTATIONS, name, "features", (task,))
