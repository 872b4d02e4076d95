"""The tables of the results, generated from the fits: nothing in them is typed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pyg_dim.evaluate.formatting import fill, markdown_row, number, replace_file
from pyg_dim.evaluate.regressors import AUTO, BLEND, DUMMY, LEAST_SQUARES, NETWORK
from pyg_dim.evaluate.statistics import FEWEST, Paired, paired
from pyg_dim.experiments.features import MAGPIE, WITH_MAGPIE
from pyg_dim.experiments.reproduce import ABLATION, LEVER, MATBENCH, REPRESENTATIONS, TRANSFER, TUNING
from pyg_dim.experiments.study import FORMATION, MORE, PHONONS, Study
from pyg_dim.experiments.transferring import RANDOM

_logger = logging.getLogger(__name__)

OURS: Final = ("dim", "combined")
"""Frozen representations that are set against Magpie, with the same probe."""
HALVED: Final = 0.6
"""Share of the median error before training below which it counts as about halved."""
LEADERBOARD: Final = {"MEGNet (best)": 28.76, "ALIGNN": 29.5, "MODNet": 34.3}
"""Mean absolute errors on matbench_phonons in 1/cm, from the leaderboard of Matbench v0.1."""

_DEVELOPMENT: Final = "tests: of formation energy and band gap, the development part"
PROBE_LEGEND: Final = (
    "Mean absolute errors of the draws, lower is better: the median, and in brackets the quartiles; all rows learn "
    "from the same labels."
)
TRANSFER_LEGEND: Final = (
    f"Behind each error, the start against the row {RANDOM} (new parameters) on the same draws: better, worse, or "
    "level where the 95 % interval [in brackets] of the median difference holds zero; too few with less than "
    f"{FEWEST} draws to tell; then the draws won - tied - lost."
)


def write_tables(study: Study, page: Path | None = None) -> Path:
    """Write all tables that the fits so far allow.

    Args:
        study: The experiment.
        page: A Markdown page that is filled too, between the markers ``<!-- begin: NAME -->`` and
            ``<!-- end: NAME -->`` with the name of a section, such as ``representations-random``; sections without a
            place are told.

    Returns:
        The file ``tables-<split>.md`` in the folder of the experiment.

    Raises:
        ValueError: A place of the page has no end.
    """
    sections = {f"{name}-{study.split}": text for name, text in _sections(study) if text}
    path = study.directory / f"tables-{study.split}.md"
    write_sections(sections, path, page)
    return path


def write_sections(sections: Mapping[str, str], path: Path, page: Path | None = None) -> None:
    """Write texts into a file of their own, and between the markers of a page.

    Args:
        sections: Text by name.
        path: The file, written or replaced.
        page: See :func:`write_tables`.

    Raises:
        ValueError: A place of the page has no end.
    """
    replace_file(path, "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items()) + "\n")
    if page is not None:
        contents = page.read_text(encoding="utf-8")
        for name, text in sections.items():
            if f"<!-- begin: {name} -->" not in contents:
                _logger.warning("%s has no place for the table of %r", page, name)
                continue
            contents = fill(contents, name, text)
        replace_file(page, contents)


def _sections(study: Study) -> Iterator[tuple[str, str]]:
    probes, transfer = study.probe_table().read(), study.transfer_table().read()
    shown = probes[probes["study"] == REPRESENTATIONS]
    yield REPRESENTATIONS, "\n\n".join(_representations(shown))
    yield "probes", "\n\n".join(probe_text(shown))
    yield "cells", _cells(shown)
    yield MORE, _more(shown)
    ablated = probes[probes["study"] == ABLATION]
    yield ABLATION, "\n\n".join(_ablation(ablated))
    levers = probes[probes["study"] == LEVER]
    yield LEVER, "\n\n".join(_against(levers, "features", "combined", f"full readout, probe: blend, {_DEVELOPMENT}"))
    options = transfer[transfer["study"] == TUNING]
    yield TUNING, "\n\n".join(_against(options, "start", "combined", f"fine-tuned, {_DEVELOPMENT}"))
    tuned = transfer[transfer["study"] == TRANSFER]
    yield "claims", _claims(shown, ablated, tuned)
    yield TRANSFER, "\n\n".join(transfer_text(tuned))
    yield MATBENCH, _matbench(probes[probes["study"] == MATBENCH], transfer[transfer["study"] == MATBENCH])


def _facts(rows: pd.DataFrame) -> str:
    tests = rows["tests"]
    span = str(tests.min()) if tests.min() == tests.max() else f"{tests.min()} to {tests.max()}"
    return f"{rows['data'].iloc[0]}, {rows['draw'].nunique()} draws, {span} test crystals, seed {rows['seed'].iloc[0]}"


def _title(task: str, rows: pd.DataFrame) -> str:
    unit = rows["unit"].iloc[0]
    return f"**{task}**" + (f" ({unit})" if unit else "") + f": {_facts(rows)}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table.

    Args:
        header: Names of the columns.
        rows: Cells, line by line.

    Returns:
        The table; all columns but the first are aligned to the right.
    """
    lines = [markdown_row(header), markdown_row([":---", *["---:"] * (len(header) - 1)])]
    return "\n".join([*lines, *(markdown_row(row) for row in rows)])


def _spread(errors: Sequence[float] | np.ndarray) -> str:
    if not len(errors):
        return "-"
    low, median, high = (number(float(q)) for q in np.percentile(errors, [25, 50, 75]))
    return f"{median} [{low}, {high}]"


def _errors(rows: pd.DataFrame, **chosen: object) -> np.ndarray:
    """Errors of what is chosen, in the order of the draws."""
    for column, value in chosen.items():
        rows = rows[rows[column] == value]
    return rows.sort_values("draw")["mae"].to_numpy(float)


def _compared(rows: pd.DataFrame, one: Mapping[str, object], other: Mapping[str, object]) -> Paired | None:
    """Two methods on the draws that both have, with the same test crystals."""
    sides = []
    for chosen in (one, other):
        side = rows
        for column, value in chosen.items():
            side = side[side[column] == value]
        # A descriptor that failed for a crystal has fewer tests, and is not compared there.
        sides.append(side.set_index(["draw", "labels", "tests"])["mae"])
    shared = sides[0].index.intersection(sides[1].index)
    if shared.empty:
        return None
    return paired(sides[0][shared].to_numpy(float), sides[1][shared].to_numpy(float))


def _told(found: Paired | None) -> str:
    if found is None:
        return "-"
    low, high = (f"{value:+.3g}" for value in (found.low, found.high))
    return f"{found.verdict}, {found.difference:+.3g} [{low}, {high}], {found.wins}-{found.ties}-{found.losses}"


def _of_tasks(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, list[int]]]:
    for task in rows["task"].drop_duplicates():
        mine = rows[rows["task"] == task]
        yield task, mine, sorted(mine["n"].unique())


def _representations(rows: pd.DataFrame) -> Iterator[str]:
    for task, mine, sizes in _of_tasks(rows):
        yield _title(task, mine) + "; probe: blend; mean absolute error, median [quartiles]"
        names = mine["features"].drop_duplicates()
        table = [["mean of the labels", *(_spread(_errors(mine, n=n, probe=DUMMY)) for n in sizes)]]
        table += [[name, *(_spread(_errors(mine, n=n, features=name, probe=BLEND)) for n in sizes)] for name in names]
        yield markdown_table(["features", *(f"n = {n}" for n in sizes)], table)


def probe_text(rows: pd.DataFrame) -> Iterator[str]:
    """Write the errors of every probe on all features.

    Args:
        rows: Rows of a table of probes, of one study.

    Yields:
        A title and a Markdown table for each task.
    """
    for task, mine, sizes in _of_tasks(rows):
        yield _title(task, mine) + "; every probe, median [quartiles]"
        table = []
        dummy = mine[mine["probe"] == DUMMY]
        if len(dummy):
            once = dummy[dummy["features"] == dummy["features"].iloc[0]]
            table.append(["mean of the labels", *(_spread(_errors(once, n=n)) for n in sizes)])
        for (features, probe), some in mine[mine["probe"] != DUMMY].groupby(["features", "probe"], sort=False):
            table.append([f"{features}, {probe}", *(_spread(_errors(some, n=n)) for n in sizes)])
        yield markdown_table(["features, probe", *(f"n = {n}" for n in sizes)], table)


def _cells(rows: pd.DataFrame) -> str:
    """The comparison with Magpie in every cell of targets and numbers of labels."""
    table = []
    for task, mine, sizes in _of_tasks(rows):
        for n in sizes:
            cell = mine[mine["n"] == n]
            magpie = cell[(cell["features"] == MAGPIE) & ~cell["probe"].isin([DUMMY])]
            medians = magpie.groupby("probe")["mae"].median()
            if BLEND not in medians:
                continue
            best = str(medians.idxmin())
            chosen = {"features": MAGPIE, "probe": BLEND}
            line = [task, str(n), f"{number(float(medians[BLEND]))} / {number(float(medians[best]))} ({best})"]
            for names in (OURS, tuple(name + WITH_MAGPIE for name in OURS)):
                ours = {
                    name: float(np.median(e)) for name in names if len(e := _errors(cell, features=name, probe=BLEND))
                }
                if not ours:
                    line += ["-", "-", "-"]
                    continue
                name = names[-1] if names[-1] in ours else next(iter(ours))
                one = {"features": name, "probe": BLEND}
                line += [f"{number(ours[name])}", _told(_compared(cell, one, chosen)),
                         _told(_compared(cell, one, {"features": MAGPIE, "probe": best}))]  # fmt: skip
            table.append(line)
    header = ["target", "n", "Magpie: blend / best probe in hindsight", "frozen", "against Magpie's blend",
              "against its best", "frozen + Magpie", "against Magpie's blend", "against its best"]  # fmt: skip
    return markdown_table(header, table) if table else ""


def _more(rows: pd.DataFrame) -> str:
    """What more crystals to pre-train on give, in every cell."""
    table = []
    for task, mine, sizes in _of_tasks(rows[rows["probe"] == BLEND]):
        for n in sizes:
            cell = mine[mine["n"] == n]
            for ending in ("", WITH_MAGPIE):
                more, fewer = ({"features": of + ending} for of in (MORE, "combined"))
                if len(errors := _errors(cell, **more)):
                    against = [_told(_compared(cell, more, other)) for other in (fewer, {"features": MAGPIE})]
                    table.append([task, str(n), MORE + ending, number(float(np.median(errors))), *against])
    header = ["target", "n", "features", "median error", "against combined, alike", "against Magpie"]
    return markdown_table(header, table) if table else ""


def _ablation(rows: pd.DataFrame) -> Iterator[str]:
    for probe in rows["probe"].drop_duplicates():
        for task, mine, sizes in _of_tasks(rows[rows["probe"] == probe]):
            yield _title(task, mine) + f"; global readout, probe: {probe}; median, and all kinds against this"
            table = []
            for name in mine["features"].drop_duplicates():
                cells = []
                for n in sizes:
                    cell = mine[mine["n"] == n]
                    found = None if name == "all" else _compared(cell, {"features": "all"}, {"features": name})
                    errors = _errors(cell, features=name)
                    text = number(float(np.median(errors))) if len(errors) else "-"
                    cells.append(text + (f" ({found.verdict})" if found else ""))
                table.append([name, *cells])
            yield markdown_table(["pre-training", *(f"n = {n}" for n in sizes)], table)


def transfer_text(rows: pd.DataFrame) -> Iterator[str]:
    """Write the errors of fine-tuned encoders, and how each start does against new parameters.

    Args:
        rows: Rows of a table of fine-tuned encoders, of one study.

    Yields:
        A title and a Markdown table for each task.
    """
    yield from _against(rows, "start", RANDOM, "fine-tuned")


def _against(rows: pd.DataFrame, column: str, base: str, how: str) -> Iterator[str]:
    """A title and a table for each task: the errors of all methods of a column, and each but the base against this."""
    for task, mine, sizes in _of_tasks(rows):
        yield f"{_title(task, mine)}; {how}; median [quartiles], against {base}"
        table = []
        for name in mine[column].drop_duplicates():
            cells = []
            for n in sizes:
                cell = mine[mine["n"] == n]
                found = None if name == base else _compared(cell, {column: name}, {column: base})
                cells.append(_spread(_errors(cell, **{column: name})) + (f"; {_told(found)}" if found else ""))
            table.append([name, *cells])
        yield markdown_table([column, *(f"n = {n}" for n in sizes)], table)


def _matbench(probes: pd.DataFrame, transfer: pd.DataFrame) -> str:
    table = [[name, number(value, 4), ""] for name, value in LEADERBOARD.items()]
    for rows, kind in ((probes, "features"), (transfer, "start")):
        columns = [kind, "probe"] if kind == "features" else [kind]
        for names, some in rows.groupby(columns, sort=False):
            errors = some.sort_values("draw")["mae"].to_numpy(float)
            name = ", ".join(names) if kind == "features" else f"fine-tuned from {names[0]}"
            table.append(
                [name, f"{number(float(errors.mean()), 4)} ± {number(float(errors.std()), 3)}", str(len(errors))]
            )
    return (
        ""
        if probes.empty and transfer.empty
        else markdown_table(["method", "MAE, mean ± deviation (1/cm)", "folds"], table)
    )


def _claims(rows: pd.DataFrame, ablated: pd.DataFrame, tuned: pd.DataFrame) -> str:
    """The claims of the paper, one by one."""
    table = []

    def check(
        claim: str, paper: str, found: Mapping[int, Paired | None], wanted: Set[str] = frozenset({"better"})
    ) -> None:
        known = {n: pair for n, pair in found.items() if pair is not None}
        if known:
            held = [n for n, pair in known.items() if pair.verdict in wanted]
            said = "yes" if len(held) == len(known) else "no" if not held else f"at n = {', '.join(map(str, held))}"
            if any(pair.count < FEWEST for pair in known.values()):
                said = "too few draws"
            here = "; ".join(f"{n}: {_told(pair)}" for n, pair in known.items())
            table.append([claim, paper, here, said])

    energy = rows[rows["task"] == FORMATION]
    pairs = [(probe, other) for probe in (LEAST_SQUARES, BLEND) for other in ("untrained global", "ofm", "xrd")]
    for probe, other in (*pairs, (NETWORK, "untrained global")):
        check(
            f"formation energy: trained (global, {probe}) beats {other}", "at every n",
            {n: _compared(energy[energy["n"] == n], {"features": "dim global", "probe": probe},
                          {"features": other, "probe": probe}) for n in sorted(energy["n"].unique())},
        )  # fmt: skip
    mine = ablated[(ablated["task"] == FORMATION) & (ablated["probe"] == LEAST_SQUARES)]
    for other in ("other", "untrained"):
        check(
            f"formation energy: all kinds beat {other!r} (least squares)",
            "engineered false samples make the difference" if other == "other" else "at every n",
            {n: _compared(mine[mine["n"] == n], {"features": "all"}, {"features": other})
             for n in sorted(mine["n"].unique())},
        )  # fmt: skip
    phonons = rows[(rows["task"] == PHONONS) & (rows["n"] == 1000)]
    for probe in (LEAST_SQUARES, NETWORK, BLEND, AUTO):
        trained = _errors(phonons, features="dim global", probe=probe)
        before = _errors(phonons, features="untrained global", probe=probe)
        if len(trained) and len(before):
            share = float(np.median(trained) / np.median(before))
            table.append([
                f"phonons, n = 1000 (global, {probe}): error about halved against untrained", "about 0.5",
                f"{number(float(np.median(before)))} to {number(float(np.median(trained)))}, a factor of {share:.2f}",
                "yes" if share < HALVED else "no",
            ])  # fmt: skip
    for task, of_task, sizes in _of_tasks(tuned):
        check(
            f"{task}: fine-tuning from combined is never worse than from random", "better",
            {n: _compared(of_task[of_task["n"] == n], {"start": "combined"}, {"start": RANDOM}) for n in sizes},
            {"better", "level"},
        )  # fmt: skip
    header = ["claim", "paper", "here: verdict, difference [95 %], won-tied-lost", "holds?"]
    return markdown_table(header, table) if table else ""
