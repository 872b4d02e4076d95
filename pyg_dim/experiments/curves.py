"""Pictures of errors against the number of labels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from pyg_dim.evaluate.compare_figure import COLOURS
from pyg_dim.experiments.pictures import publish
from pyg_dim.experiments.workspace import Workspace


def draw_curves(study: Workspace, frame: pd.DataFrame, name: str, by: str) -> Path:
    """Draw the mean error over the folds against the number of labels, with its standard deviation as bars.

    Args:
        study: The experiment, in whose folder the PNG is written.
        frame: Rows of its table of fits, of one probe.
        name: Of the study in the column ``study``.
        by: Column that tells the methods apart, "features" or "start".

    Returns:
        The PNG.

    Raises:
        ValueError: The frame has no such fits.
    """
    rows = frame[frame["study"] == name]
    if rows.empty:
        raise ValueError(f"the table has no fits to draw of the study {name!r}: no set has that many labels")
    path = study.directory / f"{name}-{study.split}.png"
    publish(study, curves_figure(rows, by), path, f"{name}/{study.split}")
    return path


def curves_figure(rows: pd.DataFrame, by: str) -> Figure:
    """Draw the curves of :func:`draw_curves`, an axes for each task.

    Args:
        rows: Fits of the study.
        by: Column of the methods.

    Returns:
        The figure.
    """
    tasks, methods = list(rows["task"].drop_duplicates()), list(rows[by].drop_duplicates())
    figure = Figure(figsize=(4.2 * len(tasks), 3.8), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        of_task = rows[rows["task"] == task]
        for colour, method in zip(COLOURS, methods, strict=False):
            errors = of_task[of_task[by] == method].groupby("n")["mae"]
            mean, spread = errors.mean(), errors.std(ddof=0)
            axes.errorbar(mean.index, mean, spread, label=method, color=colour, marker="o", markersize=3, capsize=2)
        axes.set_xscale("log")
        sizes = sorted(set(of_task["n"]))
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
        axes.set_title(task)
        axes.set_xlabel("labels")
        unit = str(of_task["unit"].iloc[0])
        axes.set_ylabel(f"mean absolute error{f' ({unit})' if unit else ''}")
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure
