"""Finished runs beside each other: one table on the screen, as CSV and as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyg_dim.evaluate.formatting import markdown_row, number, replace_file
from pyg_dim.evaluate.regressors import RIDGE
from pyg_dim.losses import BASELINES

SPEED: Final = "crystals_per_second"
LOSSES: Final = tuple(f"{name}/{where}" for name in ("js", "nce", "kl") for where in ("local", "global"))
"""Losses that all architectures log, in the order shown."""
PROBE_VALUES: Final = (
    *(f"{encoder}_{key}" for encoder in ("untrained", "trained") for key in ("median", "q25", "q75")),
    *("baseline", "wins", "losses"),
)
"""Columns of a summary that hold what a probe gave."""
COLUMNS: Final = (
    "run", "model", "objective", "data", "quantity", "unit", "target", "readout", "n", "probe", "value"
)  # fmt: skip
"""Columns of ``compare.csv``: one row for each run and quantity.

Quantities of a probe are those of :data:`PROBE_VALUES`; they have ``target``, ``readout``, ``n`` and ``probe``.
"""
WIDTH: Final = 15
"""Of the column of a run, so that four and the names of the quantities fit into 100; longer texts are broken."""
GAP: Final = 2
"""Between two columns."""

Section = tuple[str, list[str], list[list[str]]]
"""Title, heading of each column, rows; the first column names the quantity, the others are runs."""


@dataclass(frozen=True)
class Run:
    """A finished run, as plain values.

    Attributes:
        name: Unique among the runs that are compared.
        model: Architecture.
        objective: What it was trained for; several names are joined by "+".
        options: All options of the run.
        data: Name of the data.
        fingerprint: Checksum of crystals, labels of the targets and parts.
        train: Number of training crystals.
        epochs: Finished epochs.
        has_val: Whether there is a validation part.
        parameters: Of the encoder without its Deep InfoMax levels.
        level_parameters: Of these levels.
        curves: Values by tag, one for each epoch; NaN where none was logged.
        probes: Rows of probes with the columns of :data:`pyg_dim.evaluate.report.COLUMNS`; none without validation.
    """

    name: str
    model: str
    objective: str
    options: Mapping[str, Any]
    data: str
    fingerprint: int
    train: int
    epochs: int
    has_val: bool
    parameters: int
    level_parameters: int
    curves: Mapping[str, Sequence[float]]
    probes: pd.DataFrame

    @property
    def part(self) -> str:
        """The part that losses are shown of: "val", or "train" without one."""
        return "val" if self.has_val else "train"

    @property
    def crystals_seen(self) -> int:
        """Training crystals times finished epochs."""
        return self.train * self.epochs

    @property
    def losses(self) -> dict[str, Sequence[float]]:
        """Losses of the validation (or training) by name, one value for each epoch, without their total."""
        prefix = f"{self.part}/"
        found = {t.removeprefix(prefix): values for t, values in self.curves.items() if t.startswith(prefix)}
        return {name: found[name] for name in loss_order(found) if name != "total"}

    @property
    def speed(self) -> float:
        """Crystals per second in training, median over the epochs."""
        return float(pd.Series(self.curves[SPEED], dtype=float).median())


def speed_text(run: Run) -> str:
    """Write the speed of a run with three digits, or as a whole number where it has more."""
    return number(run.speed) if run.speed < 100 else f"{run.speed:.0f}"


def loss_order(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Sort names of losses: those of :data:`LOSSES` first, others as they come."""
    return [*(name for name in LOSSES if name in names), *(name for name in names if name not in LOSSES)]


def compare(runs: Sequence[Run], left_out: Mapping[str, str], directory: Path, console: Console) -> None:
    """Compare runs on the screen, in ``compare.csv`` and in ``compare.md``.

    Args:
        runs: One run or more.
        left_out: Why runs are not shown, by name.
        directory: Where to write; made if absent.
        console: Where to print.
    """
    sections, notes = list(_sections(runs)), [*differences(runs), *_advice(runs)]
    lines = ["# Comparison of runs", ""]
    for title, header, rows in sections:
        lines += [f"## {title}", "", markdown_row(header), markdown_row([":---", *["---:"] * len(runs)])]
        lines += [*(markdown_row(row) for row in rows), ""]
    told = [*(f"**{note}**" if note.startswith("warning") else note for note in notes)]
    lines += [f"- {note}" for note in (*told, *(f"left out: {name}: {why}" for name, why in left_out.items()))]
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / "compare.csv", tidy(runs).to_csv(index=False))
    replace_file(directory / "compare.md", "\n".join(lines) + "\n")

    # The same for all tables, so that a run stands in the same place.
    first = max(len(row[0]) for _, _, rows in sections for row in rows)
    for section in sections:
        for part in _fitting(section, first, console.width):
            console.print(_grid(part, first))
            console.print()
    for note in notes:
        console.print(note, markup=False, highlight=False, style="bold yellow" if note.startswith("warning") else "")
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", markup=False, highlight=False, style="yellow")


def tidy(runs: Sequence[Run]) -> pd.DataFrame:
    """Collect everything that is compared, all probes included.

    Args:
        runs: The runs.

    Returns:
        One row for each run and quantity, with the columns of :data:`COLUMNS`.
    """
    rows = []
    for run in runs:
        about = {"run": run.name, "model": run.model, "objective": run.objective, "data": run.data}
        values = {
            "training_crystals": run.train, "epochs": run.epochs, "crystals_seen": run.crystals_seen,
            "seed": run.options["seed"], "encoder_parameters": run.parameters,
            "level_parameters": run.level_parameters, f"{SPEED}_median": run.speed,
        }  # fmt: skip
        values |= {f"{run.part}/{name}": curve[-1] for name, curve in run.losses.items()}
        rows += [about | {"quantity": name, "value": value} for name, value in values.items()]
        for probe in run.probes.to_dict("records"):
            of = {"target": probe["name"]} | {key: probe[key] for key in ("unit", "readout", "n", "probe")}
            rows += [about | of | {"quantity": name, "value": probe[name]} for name in PROBE_VALUES]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64"})


def differences(runs: Sequence[Run]) -> list[str]:
    """Warn of what differs between runs beside their architecture.

    Args:
        runs: The runs.

    Returns:
        One sentence for each; none where nothing does.
    """
    infomax = [run for run in runs if "deep_infomax" in run.objective.split("+")]

    def targets(run: Run) -> str:
        target = run.options.get("target")
        return (target if isinstance(target, str) else ", ".join(target or [])) or "none"

    looks = [
        ("data", {run.name: f"checksum {run.fingerprint:08x}" for run in runs},
         "not the same crystals, labels of the targets and parts, so neither losses nor probe errors are comparable"),
        ("crystals seen", {run.name: str(run.crystals_seen) for run in runs},
         "not trained for equally long, which is a part of every difference"),
        ("seed", {run.name: str(run.options["seed"]) for run in runs},
         "other initial parameters, and other crystals and label subsets in the parts and probes"),
        ("split", {run.name: f"{run.options['split']} {run.options['val_fraction']}" for run in runs},
         "probe errors are measured on other crystals"),
        ("targets", {run.name: targets(run) for run in runs}, "not all probe the same labels"),
        ("kinds of false samples", {run.name: _joined(run.options["kinds"]) for run in infomax},
         "JS losses are not comparable, not even within one architecture"),
    ]  # fmt: skip
    found = []
    for what, values, consequence in looks:
        groups: dict[str, list[str]] = {}
        for name, value in values.items():
            groups.setdefault(value, []).append(name)
        if len(groups) > 1:
            told = "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
            found.append(f"warning: the runs differ in {what}: {told}: {consequence}")
    return found


def shared_probes(runs: Sequence[Run]) -> pd.DataFrame:
    """Choose the probes to show: ridge, of the targets, readouts and numbers of labels that all runs with probes have.

    Args:
        runs: The runs.

    Returns:
        Distinct ``name``, ``unit``, ``readout``, ``n``, in the order of the first run that has probes.
    """
    keys = ["name", "unit", "readout", "n"]
    found = [run.probes.loc[run.probes["probe"] == RIDGE, keys] for run in runs if len(run.probes)]
    if not found:
        return pd.DataFrame(columns=keys)
    everywhere = set.intersection(*(set(rows.itertuples(index=False, name=None)) for rows in found))
    return found[0][[row in everywhere for row in found[0].itertuples(index=False, name=None)]]


def ridge_row(run: Run, name: str, readout: str, n: int) -> dict[str, Any] | None:
    """Find what the ridge probe gave.

    Args:
        run: The run.
        name: Target.
        readout: Readout of the representation.
        n: Number of labels.

    Returns:
        The row of the summary, or None.
    """
    table = run.probes
    chosen = (table["name"] == name) & (table["readout"] == readout) & (table["n"] == n) & (table["probe"] == RIDGE)
    rows = table[chosen].to_dict("records")
    return rows[0] if rows else None


def _sections(runs: Sequence[Run]) -> Iterator[Section]:
    names = [run.name for run in runs]
    facts = {
        "model": [run.model for run in runs],
        "objective": [run.objective for run in runs],
        "data": [run.data for run in runs],
        "training crystals": [str(run.train) for run in runs],
        "epochs": [str(run.epochs) for run in runs],
        "crystals seen": [str(run.crystals_seen) for run in runs],
        "seed": [str(run.options["seed"]) for run in runs],
        "parameters": [str(run.parameters) for run in runs],
        "parameters of levels": [str(run.level_parameters) for run in runs],
        "crystals/s (median)": [speed_text(run) for run in runs],
    }
    yield "Runs", ["", *names], [[name, *cells] for name, cells in facts.items()]

    losses = [run.losses for run in runs]
    shown = loss_order(list(dict.fromkeys(name for of_run in losses for name in of_run)))
    parts = {run.part for run in runs}
    known = [f"{number(BASELINES[name], 4)} ({name})" for name in BASELINES if any(s.startswith(name) for s in shown)]
    title = "Losses at the end, " + ("validation" if parts == {"val"} else " or ".join(sorted(parts)))
    title += f"; a critic that knows nothing has {', '.join(known)}" if known else ""
    if shown:
        yield title, ["", *names], [[name, *(_loss(run, name, len(parts) > 1) for run in runs)] for name in shown]

    for (target, unit), rows in shared_probes(runs).groupby(["name", "unit"], sort=False):
        title = f"{target}{f' ({unit})' if unit else ''}: mean absolute error of the ridge probe, median"
        cells = []
        for readout, n in rows[["readout", "n"]].itertuples(index=False, name=None):
            found = [ridge_row(run, target, readout, n) for run in runs]
            cells += [[f"{readout}, {n}: {what}", *(show(row) for row in found)] for what, show in _SHOWN.items()]
        yield title, ["readout, labels", *names], cells


def _loss(run: Run, name: str, mixed: bool) -> str:
    curve = run.losses.get(name)
    if curve is None or math.isnan(curve[-1]):
        return "-"
    return number(curve[-1], 4) + (f" ({run.part})" if mixed else "")


_SHOWN: Final[dict[str, Callable[[Mapping[str, Any] | None], str]]] = {
    "untrained": lambda row: "-" if row is None else number(row["untrained_median"]),
    "trained": lambda row: "-" if row is None else number(row["trained_median"]),
    "won-lost": lambda row: "-" if row is None else f"{row['wins']:.0f}-{row['losses']:.0f}",
}
"""What is shown of a probe, and how."""


def _advice(runs: Sequence[Run]) -> list[str]:
    """What may be compared and what not."""
    told = []
    if len({run.model for run in runs}) > 1 and any(name in LOSSES for run in runs for name in run.losses):
        told.append(
            "JS, NCE and KL losses of different architectures must not be compared: their levels have other "
            "constituents. Compare them with the value of a critic that knows nothing, and within one architecture."
        )
    if any(len(run.probes) for run in runs):
        told.append(
            "Probe errors can be compared between architectures, where data, parts and seed are the same. They are "
            "medians of the mean absolute error over subsets of the labels; won-lost counts the subsets in which the "
            "trained encoder is better and worse than the same one untrained. All probes and quartiles: compare.csv."
        )
        shown = set(shared_probes(runs).itertuples(index=False, name=None))
        found = {
            key: None
            for run in runs
            for key in run.probes[["name", "unit", "readout", "n"]].itertuples(index=False, name=None)
        }
        if missing := [f"{key[0]}, {key[2]}, {key[3]}" for key in found if key not in shown]:
            told.append(f"Probes that not all of these runs have are not shown: {'; '.join(missing)}.")
    told.append(
        "crystals/s is the median over the epochs of training: compare it between runs of one machine. "
        "Parameters are counted without those of the Deep InfoMax levels, which only training needs."
    )
    return told


def _joined(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ",".join(value)


def _fitting(section: Section, first: int, width: int) -> Iterator[Section]:
    """Cut a table that is wider than the screen into several, each with some of the runs."""
    title, header, rows = section
    at_once = max(1, (width - first) // (WIDTH + GAP))
    for start in range(1, len(header), at_once):
        chosen = slice(start, start + at_once)
        cells = [[row[0], *map(_wrap, row[chosen])] for row in rows]
        yield title if start == 1 else f"{title} (continued)", [header[0], *map(_wrap, header[chosen])], cells


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH))


def _grid(section: Section, first: int) -> Table:
    title, header, rows = section
    grid = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, GAP - 1),
        pad_edge=False,
    )
    grid.add_column(header[0], width=first, no_wrap=True)
    for heading in header[1:]:
        grid.add_column(escape(heading), justify="right", width=WIDTH, no_wrap=True)
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    return grid
