"""The picture of a comparison of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pyg_dim.evaluate.compare import Run, loss_order, ridge_row, shared_probes, speed_text
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.losses import BASELINES, JS_BASELINE

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Told apart with any colour vision (Okabe and Ito); runs beyond them begin again with another marker."""
MARKERS = "osD^v"
COLUMNS = 3
"""Panels in a row."""
PANEL = (4.6, 3.5)
"""Width and height of a panel, in inches."""


def write_figure(runs: Sequence[Run], directory: Path) -> None:
    """Write ``compare.png`` in one step.

    Args:
        runs: One run or more.
        directory: Where to write.
    """
    png = BytesIO()
    compare_figure(runs).savefig(png, format="png", dpi=150)
    replace_file(directory / "compare.png", png.getvalue())


def compare_figure(runs: Sequence[Run]) -> Figure:
    """Draw losses by epoch, speeds, and probe errors by number of labels; a run has the same colour throughout.

    Args:
        runs: One run or more.

    Returns:
        The figure.
    """
    names = loss_order(list(dict.fromkeys(name for run in runs for name in run.losses)))
    # KL terms have no line to fall below, and belong to the noise; without critics there are errors of labels.
    curves = [name for name in names if name.startswith(tuple(f"{key}/" for key in BASELINES))]
    curves = curves or [name for name in names if not name.startswith("kl/")]
    shown = shared_probes(runs)
    cells = _probe_cells(shown)

    # Losses and speed fill rows of their own, so that the probes of a target stand in one column.
    first = math.ceil((len(curves) + 1) / COLUMNS)
    rows = first + max((row + 1 for row, _ in cells), default=0)
    # Made without pyplot, which would register the figure for a window and keep it alive.
    figure = Figure(figsize=(COLUMNS * PANEL[0], rows * PANEL[1] + 0.8), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in panels.flat:
        axes.set_visible(False)
    upper = panels[:first].flatten()
    for axes, name in zip(upper, curves, strict=False):
        _draw_loss(axes, runs, name)
    _draw_speed(upper[len(curves)], runs)
    for (row, column), (name, unit, readout) in cells.items():
        sizes = sorted(set(shown[(shown["name"] == name) & (shown["readout"] == readout)]["n"]))
        _draw_probe(panels[first + row, column], runs, name, unit, readout, sizes)
    entries = [
        Line2D([], [], color=_colour(k), marker=_marker(k), label=f"{run.name}" + _model_note(run))
        for k, run in enumerate(runs)
    ]
    if cells:
        entries += [
            Line2D([], [], color="#444444", marker="o", linestyle="", markerfacecolor="white", label="untrained"),
            Line2D([], [], color="#444444", marker="o", linestyle="", label="trained"),
        ]
    figure.legend(handles=entries, loc="outside upper center", ncols=min(len(entries), COLUMNS), frameon=False)
    return figure


def _probe_cells(shown: pd.DataFrame) -> dict[tuple[int, int], tuple[str, str, str]]:
    """Row and column of each target (with unit) and readout: a readout begins a row where there are several targets."""
    targets = list(dict.fromkeys(shown[["name", "unit"]].itertuples(index=False, name=None)))
    cells: dict[tuple[int, int], tuple[str, str, str]] = {}
    if len(targets) == 1:
        return {(0, column): (*targets[0], readout) for column, readout in enumerate(shown["readout"].unique())}
    row = 0
    for readout in shown["readout"].unique():
        for place, target in enumerate(targets):
            cells[row + place // COLUMNS, place % COLUMNS] = (*target, readout)
        row += math.ceil(len(targets) / COLUMNS)
    return cells


def _model_note(run: Run) -> str:
    return "" if run.model in run.name else f" ({run.model})"


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _marker(place: int) -> str:
    return MARKERS[place // len(COLOURS) % len(MARKERS)]


def _show(axes: Axes, title: str) -> None:
    axes.set_visible(True)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_loss(axes: Axes, runs: Sequence[Run], name: str) -> None:
    parts = sorted({run.part for run in runs if name in run.losses}, reverse=True)
    _show(axes, f"{' or '.join(parts)} {name}")
    longest = 1
    for k, run in enumerate(runs):
        if name in run.losses:
            curve = run.losses[name]
            longest = max(longest, len(curve))
            # Points only where few epochs would otherwise be hard to see.
            size = 4 if len(curve) <= 30 else 0
            axes.plot(range(1, len(curve) + 1), curve, color=_colour(k), marker=_marker(k), markersize=size)
    baseline = BASELINES.get(name.partition("/")[0])
    if baseline is not None:
        axes.axhline(baseline, color="#444444", linestyle="--", linewidth=1)
        text = "2 ln 2: knows nothing" if baseline == JS_BASELINE else "knows nothing"
        axes.annotate(
            text, (1, baseline), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=8, color="#444444",
        )  # fmt: skip
    if len({run.model for run in runs}) > 1 and baseline is not None:
        axes.set_ylabel("not comparable between architectures", fontsize=8, color="#888888")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.8, longest + 0.2)


def _draw_speed(axes: Axes, runs: Sequence[Run]) -> None:
    _show(axes, "crystals/s in training, median over epochs")
    bars = axes.barh(range(len(runs)), [run.speed for run in runs], color=[_colour(k) for k in range(len(runs))])
    axes.bar_label(bars, [speed_text(run) for run in runs], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.set_ylim(max(len(runs), 3) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(visible=False)


def _draw_probe(axes: Axes, runs: Sequence[Run], name: str, unit: str, readout: str, sizes: Sequence[int]) -> None:
    _show(axes, f"{name}, {readout} readout, ridge")
    # Each run has a slot in the cluster of a size: untrained at its left, trained at its right.
    slot = 0.8 / len(runs)
    for k, run in enumerate(runs):
        for place, n in enumerate(sizes):
            row = ridge_row(run, name, readout, n)
            if row is None:
                continue
            left = place - 0.4 + slot * k
            x = (left + 0.28 * slot, left + 0.72 * slot)
            medians = [row[f"{encoder}_median"] for encoder in ("untrained", "trained")]
            axes.plot(x, medians, color=_colour(k), linewidth=1)
            for at, encoder, face in zip(x, ("untrained", "trained"), ("white", _colour(k)), strict=True):
                middle, low, high = (row[f"{encoder}_{key}"] for key in ("median", "q25", "q75"))
                axes.errorbar(
                    at, middle, [[middle - low], [high - middle]], color=_colour(k), marker=_marker(k), markersize=5,
                    markerfacecolor=face, elinewidth=1, capsize=2,
                )  # fmt: skip
    axes.set_xticks(range(len(sizes)), [str(n) for n in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_xlabel("labels (median and quartiles over subsets)")
    axes.set_ylabel(f"mean absolute error{f' ({unit})' if unit else ''}", fontsize=9)
