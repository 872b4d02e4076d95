"""The summary of a run as a table: on the screen, as CSV and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyg_dim.evaluate.formatting import markdown_row, number, replace_file
from pyg_dim.losses import BASELINES, JS_BASELINE

TRAINED = "trained"
UNTRAINED = "untrained"
ENCODERS = (UNTRAINED, TRAINED)

COLUMNS = (
    "section",
    "name",
    "unit",
    "readout",
    "n",
    "probe",
    "train",
    "val",
    "untrained_median",
    "untrained_q25",
    "untrained_q75",
    "trained_median",
    "trained_q25",
    "trained_q75",
    "baseline",
    "wins",
    "losses",
)
"""Columns of a summary.

A loss has ``name``, its final values ``train`` and ``val``, and for those of critics the ``baseline``.
A probe has ``name`` and ``unit`` of its target, ``n`` labels, the median and quartiles of its mean absolute error over
the label subsets, in that unit, for the ``untrained`` and the ``trained`` encoder, the median error of predicting the
mean (``baseline``), and the numbers of subsets in which the trained encoder is better (``wins``) or worse (``losses``).
"""

UNITS = {
    "band_gap": "eV",
    "density": "g/cm3",
    "energy_above_hull": "eV/atom",
    "formation_energy_per_atom": "eV/atom",
    "last phdos peak": "1/cm",
    "mean electronegativity": "Pauling",
}
"""Units of targets, where known by name."""


def loss_rows(losses: Mapping[str, float]) -> list[dict[str, Any]]:
    """Pair final losses of training and validation.

    Args:
        losses: Values by tag; those under ``train/`` and ``val/`` are used, except their ``detail/``.

    Returns:
        One row with the columns of :data:`COLUMNS` for each loss, in the order of the tags.
    """
    rows: dict[str, dict[str, Any]] = {}
    for tag, value in losses.items():
        phase, _, name = tag.partition("/")
        if phase in ("train", "val") and name and not name.startswith("detail/"):
            baseline = BASELINES.get(name.partition("/")[0], math.nan)
            row = rows.setdefault(name, {"section": "loss", "name": name, "unit": "", "baseline": baseline})
            row[phase] = float(value)
    return list(rows.values())


def probe_row(
    name: str,
    readout: str,
    n: int,
    probe: str,
    trained: Sequence[float],
    untrained: Sequence[float],
    baseline: float,
) -> dict[str, Any]:
    """Compare the errors of a probe on two encoders over the same label subsets.

    Args:
        name: Target.
        readout: Readout of the representation.
        n: Number of labels.
        probe: Kind of probe.
        trained: Mean absolute errors of the trained encoder, one for each subset.
        untrained: The same of the untrained one, in the same order.
        baseline: Error of predicting the mean.

    Returns:
        A row with the columns of :data:`COLUMNS`.
    """
    row: dict[str, Any] = {"section": "probe", "name": name, "unit": UNITS.get(name, ""), "readout": readout}
    row |= {"n": n, "probe": probe, "baseline": baseline}
    for encoder, errors in zip(ENCODERS, (untrained, trained), strict=True):
        quartiles = np.percentile(errors, [25, 50, 75])
        row |= {f"{encoder}_{key}": float(q) for key, q in zip(("q25", "median", "q75"), quartiles, strict=True)}
    difference = np.asarray(trained) - np.asarray(untrained)
    return row | {"wins": int((difference < 0).sum()), "losses": int((difference > 0).sum())}


def headline(table: pd.DataFrame) -> str:
    """Say in one sentence whether training helped.

    Args:
        table: Rows with the columns of :data:`COLUMNS`.

    Returns:
        In how many of the probes the trained encoder has the lower median error, and by how much, over the probes in
        which the untrained one has an error at all; empty without probes.
    """
    probes = table[table["section"] == "probe"]
    if probes.empty:
        return ""
    better = int((probes["trained_median"] < probes["untrained_median"]).sum())
    text = f"Training lowered the error in {better} of {len(probes)} probes"
    # Without an error there is nothing to be a share of: a constant label for example.
    known = probes[(probes["untrained_median"] > 0) & probes["trained_median"].notna()]
    if known.empty:
        return f"{text}."
    change = 100 * float((known["trained_median"] / known["untrained_median"] - 1).median())
    return f"{text}; the median change is {change:+.1f} %."


def print_summary(table: pd.DataFrame, notes: Sequence[str], console: Console) -> None:
    """Print a summary.

    Args:
        table: Rows with the columns of :data:`COLUMNS`.
        notes: What was left out, in words.
        console: Where to print.
    """
    for title, header, cells in _sections(table):
        grid = Table(
            title=escape(title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for heading, width in zip(header, _widths(header, cells, console.width), strict=True):
            grid.add_column(heading, justify="right", width=width, overflow="fold")
        for row in cells:
            grid.add_row(*(escape(cell) for cell in row))
        console.print(grid)
    for line in (headline(table), *(f"note: {note}" for note in notes)):
        if line:
            console.print(line, markup=False, highlight=False)


def _widths(header: Sequence[str], cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of columns that fit on the screen: broken between words, names before numbers, and only where needed."""
    columns = list(zip(header, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for place in sorted(range(len(header)), key=lambda place: header[place] in ENCODERS):
        # Two characters lie between columns, one at each edge.
        excess = sum(widths) + 2 * len(widths) - room
        longest = max(len(word) for text in columns[place] for word in text.split())
        widths[place] = max(longest, widths[place] - max(excess, 0))
    return widths


def write_summary(table: pd.DataFrame, notes: Sequence[str], directory: Path) -> None:
    """Write ``summary.csv`` and ``summary.md``, each in one step.

    Args:
        table: Rows with the columns of :data:`COLUMNS`.
        notes: What was left out, in words.
        directory: Where to write; made if absent.
    """
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / "summary.csv", table.to_csv(index=False))
    lines = ["# Summary of the run", "", headline(table), ""]
    for title, header, cells in _sections(table):
        lines += [f"## {title}", ""]
        lines += [markdown_row(header), markdown_row(["---:"] * len(header))]
        lines += [markdown_row(row) for row in cells] + [""]
    lines += [f"- note: {note}" for note in notes]
    replace_file(directory / "summary.md", "\n".join(lines).rstrip() + "\n")


def _sections(table: pd.DataFrame) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    losses = table[table["section"] == "loss"].to_dict("records")
    if losses:
        # The baseline by its name where it is 2 ln 2.
        known = {row["baseline"] for row in losses if not math.isnan(row["baseline"])}
        baseline = "2 ln 2" if JS_BASELINE in known else "baseline"
        yield (
            "Losses" + (f" ({baseline}: a critic that knows nothing)" if known else ""),
            ["loss", "train", "val", baseline, "val is"],
            [
                [row["name"], *(number(row[key], 4) for key in ("train", "val", "baseline")), _verdict(row)]
                for row in losses
            ],
        )
    probes = table[table["section"] == "probe"]
    for (name, readout), rows in probes.groupby(["name", "readout"], sort=False):
        unit = rows["unit"].iloc[0]
        yield (
            f"{name}{f' ({unit})' if unit else ''}, {readout} readout: mean absolute error, median [quartiles]",
            ["n", "probe", *ENCODERS, "dummy", "won - lost"],
            [
                [
                    str(row["n"]),
                    row["probe"],
                    *(_spread(row, encoder) for encoder in ENCODERS),
                    number(row["baseline"]),
                    f"{row['wins']}-{row['losses']}",
                ]
                for row in rows.to_dict("records")
            ],
        )


def _verdict(row: Mapping[str, Any]) -> str:
    if math.isnan(row["val"]) or math.isnan(row["baseline"]):
        return ""
    return "below" if row["val"] < row["baseline"] else "NOT below"


def _spread(row: Mapping[str, Any], encoder: str) -> str:
    median, low, high = (number(row[f"{encoder}_{key}"]) for key in ("median", "q25", "q75"))
    return f"{median} [{low}, {high}]"
