"""Box-and-whisker pictures of the tables of fits."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch.utils.tensorboard import SummaryWriter

from pyg_dim.evaluate.compare_figure import COLOURS
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.evaluate.regressors import BLEND, DUMMY, LEAST_SQUARES, PROBES, RIDGE
from pyg_dim.experiments.workspace import Workspace

SHOWN: Final = {"representations": (BLEND, LEAST_SQUARES), "ablation": (RIDGE, LEAST_SQUARES)}
"""Probes that the picture of a study shows; all that it has where it is not named here."""
BEYOND_MEAN: Final = 1.5
BEYOND_OTHERS: Final = 3.0
"""Axes end at so many times the error of predicting the mean, or that of other probes: least squares can be far off."""
BOX: Final = 0.18
"""Width of a box with its share of the gap, in inches."""
WRAPPED: Final = 18
"""Characters in a line of the name of a method."""
TENSORBOARD: Final = "tensorboard"


def draw_boxes(study: Workspace, frame: pd.DataFrame, name: str, by: str, tasks: Sequence[str]) -> Path:
    """Draw the errors of a study: a row of axes for each task, a column for each number of labels.

    A box holds the draws of one method: quartiles and median, whiskers to the last draw within 1.5 times their
    distance, and the draws beyond. Axes end at 1.5 times the median error of predicting the mean label, or, where that
    was not measured, at 3 times the largest median of the probes that are regularised; the number of draws above stands
    at the top of a box. Medians are scalars in TensorBoard, the step of which is the number of labels.

    Args:
        study: The experiment, in whose folder the PNG is written.
        frame: Rows of its table of fits.
        name: Of the study in the column ``study``.
        by: Column that tells the methods apart, "features" or "start".
        tasks: Values of the column ``task``, from top to bottom.

    Returns:
        The PNG.

    Raises:
        ValueError: The frame has no such fits.
    """
    rows = frame[(frame["study"] == name) & frame["task"].isin(tasks)]
    wanted = _of_probes(rows, name)
    if wanted.empty:
        raise ValueError(f"the table has no fits to draw of the study {name!r} and the tasks {', '.join(tasks)}")
    shown = [task for task in tasks if task in set(wanted["task"])]
    stem = "-".join([name, *tasks, study.split]).replace(" ", "-")
    path = study.directory / f"{stem}.png"
    publish(study, boxes_figure(rows, name, by, shown, study.split), path, f"{name}/{stem}")
    with SummaryWriter(str(study.directory / TENSORBOARD)) as writer:
        method = [by, "probe"] if "probe" in rows else [by]
        for key, errors in wanted.groupby(["task", "n", *method])["mae"]:
            task, n, *what = (str(part) for part in key)
            writer.add_scalar("/".join([name, study.split, task, *what]), errors.median(), int(n))
    return path


def boxes_figure(rows: pd.DataFrame, name: str, by: str, tasks: Sequence[str], split: str) -> Figure:
    """Draw the boxes of :func:`draw_boxes`.

    Args:
        rows: Fits of the study.
        name: Of the study.
        by: Column of the methods.
        tasks: From top to bottom, each with fits.
        split: How the data were split, for the title.

    Returns:
        The figure.
    """
    wanted = _of_probes(rows, name)
    probes = [probe for probe in PROBES if probe in set(wanted["probe"])] if "probe" in wanted else [""]
    methods, sizes = sorted(set(wanted[by])), sorted(set(wanted["n"]))
    width = max(3.0, 1.0 + BOX * len(methods) * len(probes))
    longest = max(len(line) for method in methods for line in _wrapped(method).split("\n"))
    height = 3.1 + 0.075 * longest
    # Made without pyplot, which would register the figure for a window and keep it alive.
    figure = Figure(figsize=(width * len(sizes), height * len(tasks) + 0.9), layout="constrained")
    panels = figure.subplots(len(tasks), len(sizes), squeeze=False)
    for line, task in zip(panels, tasks, strict=True):
        for axes, n in zip(line, sizes, strict=True):
            cell = rows[(rows["task"] == task) & (rows["n"] == n)]
            if cell.empty:
                axes.set_visible(False)
                continue
            _draw_cell(axes, cell, by, methods, probes, _end(cell, by))
            axes.set_title(f"{task}\n{_counts(cell['labels'])} labels, {_counts(cell['tests'])} tests", fontsize=9)
        unit = str(rows.loc[rows["task"] == task, "unit"].iloc[0])
        line[0].set_ylabel(f"mean absolute error{f' ({unit})' if unit else ''}", fontsize=9)
    handles = [Patch(facecolor=COLOURS[place], alpha=0.6, label=probe) for place, probe in enumerate(probes) if probe]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(_title(wanted, name, by, split), fontsize=11)
    return figure


def publish(study: Workspace, figure: Figure, path: Path, tag: str) -> None:
    """Write a figure as PNG, in one step, and show it in TensorBoard.

    Args:
        study: The experiment.
        figure: The figure.
        path: The PNG.
        tag: Its name in TensorBoard.
    """
    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, png.getvalue())
    with SummaryWriter(str(study.directory / TENSORBOARD)) as writer:
        # Closing is for figures of pyplot.
        writer.add_figure(tag, figure, close=False)


def _of_probes(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows[rows["probe"].isin(SHOWN[name])] if name in SHOWN and "probe" in rows else rows


def _end(cell: pd.DataFrame, by: str) -> float:
    """Where the axis ends."""
    if "probe" not in cell:
        return np.inf
    if (dummy := cell.loc[cell["probe"] == DUMMY, "mae"]).size:
        return BEYOND_MEAN * float(dummy.median())
    medians = cell[cell["probe"] != LEAST_SQUARES].groupby([by, "probe"])["mae"].median()
    return BEYOND_OTHERS * float(medians.max()) if len(medians) else np.inf


def _draw_cell(
    axes: Axes, cell: pd.DataFrame, by: str, methods: Sequence[str], probes: Sequence[str], end: float
) -> None:
    share = 0.84 / len(probes)
    above = False
    for number, method in enumerate(methods):
        of_method = cell[cell[by] == method]
        mine = [probe for probe in probes if not probe or probe in set(of_method["probe"])]
        for slot, probe in enumerate(mine):
            errors = (of_method[of_method["probe"] == probe] if probe else of_method)["mae"].dropna().to_numpy()
            if not len(errors):
                continue
            place, at = probes.index(probe), number + share * (slot + 0.5 - 0.5 * len(mine))
            axes.boxplot(
                [errors], positions=[at], widths=0.8 * share, patch_artist=True, manage_ticks=False,
                boxprops={"facecolor": COLOURS[place], "alpha": 0.6, "linewidth": 0.8},
                medianprops={"color": "black"}, flierprops={"markersize": 2.5},
            )  # fmt: skip
            if count := int((errors > end).sum()):
                above = True
                axes.annotate(
                    f"{count} above", (at, end), (0, -2), textcoords="offset points", rotation=90, fontsize=6,
                    ha="center", va="top", bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5, "alpha": 0.8},
                )  # fmt: skip
    if above:
        axes.set_ylim(top=end)
    axes.set_ylim(bottom=0)
    if "probe" in cell and (dummy := cell.loc[cell["probe"] == DUMMY, "mae"].median()) > 0:
        axes.axhline(dummy, color="#444444", linestyle="--", linewidth=1)
        axes.annotate(
            "mean of the labels", (0, dummy), (3, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=7, color="#444444",
        )  # fmt: skip
    axes.set_xticks(range(len(methods)), [_wrapped(method) for method in methods], rotation=90, fontsize=8)
    axes.set_xlim(-0.5, len(methods) - 0.5)
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _wrapped(method: str) -> str:
    return fill(method, WRAPPED)


def _counts(values: pd.Series) -> str:
    """One number, or the least and the greatest: folds differ by a crystal, and descriptors can fail."""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _title(rows: pd.DataFrame, name: str, by: str, split: str) -> str:
    keys = ["task", "n", by, *(["probe"] if "probe" in rows else [])]
    draws = _counts(rows.groupby(keys)["draw"].nunique())
    return (
        f"{name}: {', '.join(sorted(set(rows['data'])))}, split {split}\n"
        f"boxes over {draws} draws of the labels, seed {_counts(rows['seed'])}"
    )
