"""The tables of pre-training without structures, generated from the fits, beside the numbers in print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

import pandas as pd
from scipy.stats import ttest_rel

from pyg_dim.evaluate.baselines import FRACTIONS
from pyg_dim.evaluate.compare import speed_text
from pyg_dim.evaluate.formatting import number
from pyg_dim.evaluate.regressors import BLEND, DUMMY, PLAIN_FOREST
from pyg_dim.experiments import formula_published as published
from pyg_dim.experiments.features import MAGPIE
from pyg_dim.experiments.formula_figures import FIGURE_9, FIGURE_10, FINE_TUNED, TABLE_2, TABLE_3, UNTRAINED
from pyg_dim.experiments.formula_study import FormulaStudy, Version
from pyg_dim.experiments.page import markdown_table, write_sections
from pyg_dim.experiments.scales import STRATEGIES
from pyg_dim.experiments.transferring import RANDOM
from pyg_dim.training.finished import read_runs

_STARTS: Final = {RANDOM: "Roost", **{name: name for name in FINE_TUNED}}
_VECTORS: Final = (MAGPIE, FRACTIONS, UNTRAINED, *STRATEGIES)


def write_formula_tables(study: FormulaStudy, page: Path | None = None) -> Path:
    """Write all tables that the fits so far allow, of both versions.

    Args:
        study: The experiment.
        page: A Markdown page with markers, see :func:`pyg_dim.experiments.page.write_tables`; sections are named after
            the table and the version, as in ``rp-table2-all``, and ``rp-unseen`` for the difference of the versions.

    Returns:
        The file ``tables.md`` in the folder of the experiment.

    Raises:
        ValueError: A place of the page has no end.
    """
    versions = [replace(study, split=version) for version in get_args(Version)]
    frames = {of.split: (of.probe_table().read(), of.transfer_table().read()) for of in versions}
    sections = {"rp-pretraining": _pretraining(study)}
    for version, (probes, transfer) in frames.items():
        sections |= {f"{name}-{version}": text for name, text in _sections(probes, transfer)}
    sections["rp-unseen"] = _unseen(*frames.values())
    path = study.directory / "tables.md"
    write_sections({name: text for name, text in sections.items() if text}, path, page)
    return path


def _sections(probes: pd.DataFrame, transfer: pd.DataFrame) -> Iterator[tuple[str, str]]:
    frozen, tuned = probes[probes["study"] == TABLE_3], transfer[transfer["study"] == TABLE_2]
    yield TABLE_2, _fine_tuned(frozen, tuned)
    yield TABLE_3, _frozen(frozen)
    yield "rp-table4", _tested(tuned)
    yield FIGURE_9, _curves(transfer[transfer["study"] == FIGURE_9], "start", _STARTS)
    curves = probes[(probes["study"] == FIGURE_10) & (probes["probe"] == PLAIN_FOREST)]
    yield FIGURE_10, _curves(curves, "features", {name: name for name in _VECTORS})


def _errors(rows: pd.DataFrame, **chosen: object) -> pd.Series:
    """Errors of what is chosen, by fold."""
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    return rows.set_index("draw")["mae"].sort_index().astype(float)


def _cell(errors: pd.Series) -> str:
    """Mean and population standard deviation over the folds."""
    if errors.empty:
        return "-"
    return f"{number(float(errors.mean()), 4)} ± {number(float(errors.std(ddof=0)), 3)}"


def _titled(task: str, rows: pd.DataFrame) -> str:
    unit = rows["unit"].iloc[0]
    return f"{task} ({unit})" if unit else task


def _fine_tuned(frozen: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """Ours above the numbers in print, set by set."""
    table = []
    names = [*_STARTS.values(), "RF-Magpie"]
    for task in frozen["task"].drop_duplicates():
        rows, of_task = frozen[frozen["task"] == task], tuned[tuned["task"] == task]
        cells = [_cell(_errors(of_task, start=start)) for start in _STARTS]
        cells.append(_cell(_errors(rows, features=MAGPIE, probe=PLAIN_FOREST)))
        table.append([_titled(task, rows), str(rows["draw"].nunique()), _cell(_errors(rows, probe=DUMMY)), *cells])
        printed = published.FINE_TUNED[task]
        table.append(["in print", "5", published.FROZEN[task]["dummy"], *(printed.get(name, "-") for name in names)])
    return markdown_table(["set", "folds", "dummy", *names], table) if table else ""


def _frozen(rows: pd.DataFrame) -> str:
    table = []
    for task in rows["task"].drop_duplicates():
        of_task = rows[rows["task"] == task]
        dummy = _cell(_errors(of_task, probe=DUMMY))
        for probe in (PLAIN_FOREST, BLEND):
            cells = [_cell(_errors(of_task, features=name, probe=probe)) for name in _VECTORS]
            if set(cells) != {"-"}:
                table.append([f"{_titled(task, of_task)}, {probe}", dummy, *cells])
        printed = published.FROZEN[task]
        cells = [published.FINE_TUNED[task]["RF-Magpie"], *(printed.get(name, "-") for name in _VECTORS[1:])]
        table.append(["in print", printed["dummy"], *cells])
    return markdown_table(["set", "dummy", *_VECTORS], table) if table else ""


def _tested(tuned: pd.DataFrame) -> str:
    table = []
    for task in tuned["task"].drop_duplicates():
        of_task = tuned[tuned["task"] == task]
        printed = published.T_TEST.get(task, {})
        cells = [_t_test(_errors(of_task, start=name), _errors(of_task, start=RANDOM)) for name in FINE_TUNED]
        table.append([task, *cells])
        table.append(["in print", *(printed.get(name, "-") for name in FINE_TUNED)])
    return markdown_table(["set", *FINE_TUNED], table) if table else ""


def _t_test(errors: pd.Series, others: pd.Series) -> str:
    """Write p (t) of the paired t test over the folds of both; t is below zero where the first has lower errors."""
    shared = errors.index.intersection(others.index)
    if len(shared) < 2 or not (errors[shared] - others[shared]).std() > 0:
        return "-"
    found = ttest_rel(errors[shared], others[shared])
    return f"{found.pvalue:.3f} ({found.statistic:.2f})"


def _curves(rows: pd.DataFrame, by: str, names: dict[str, str]) -> str:
    table = []
    for task in rows["task"].drop_duplicates():
        of_task = rows[rows["task"] == task]
        for n in sorted(of_task["n"].unique()):
            cells = [_cell(_errors(of_task, n=n, **{by: name})) for name in names]
            table.append([_titled(task, of_task), str(n), str(of_task["draw"].nunique()), *cells])
    return markdown_table(["set", "labels", "folds", *names.values()], table) if table else ""


def _unseen(*frames: tuple[pd.DataFrame, pd.DataFrame]) -> str:
    """What leaving out the formulas of the sets changes: errors of both versions, and a paired test over the folds."""
    table = []
    kinds = (
        (0, {"study": TABLE_3, "probe": PLAIN_FOREST}, "features", "frozen"),
        (1, {"study": TABLE_2}, "start", "tuned"),
    )
    for place, chosen, by, kind in kinds:
        for task in frames[1][place]["task"].drop_duplicates():
            for name in STRATEGIES:
                seen, unseen = (_errors(frame[place], task=task, **chosen, **{by: name}) for frame in frames)
                if len(seen) and len(unseen):
                    table.append([f"{task}, {name}, {kind}", _cell(seen), _cell(unseen), _t_test(unseen, seen)])
    header = ["set, strategy", "all formulas", "without those of the sets", "p (t)"]
    return markdown_table(header, table) if table else ""


def _pretraining(study: FormulaStudy) -> str:
    """Formulas, throughput and losses of all runs."""
    if not study.runs.is_dir():
        return ""
    try:
        runs, _ = read_runs([study.runs])
    except ValueError:  # none is finished
        return ""
    table = []
    for run in sorted(runs, key=lambda run: run.name):
        losses = "; ".join(f"{name} {number(values[-1])} ({number(values[0])})" for name, values in run.losses.items())
        table.append([run.name, run.objective, f"{run.data}, {run.train}", str(run.epochs), speed_text(run), losses])
    header = ["run", "objective", "trained on", "epochs", "a second", "validation losses, last (first) epoch"]
    return markdown_table(header, table)
