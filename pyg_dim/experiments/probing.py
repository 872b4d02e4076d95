"""Probes on frozen vectors: for each task, number of labels and draw, the error of every probe on every features."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from pyg_dim.evaluate.regressors import CANDIDATES, CHOICES, Prediction, candidates_of, fit_probes
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task

SIZES: Final = (50, 100, 250, 1000)
"""Numbers of labels of Moran et al. 2025."""
KEYS: Final = ("study", "task", "n", "draw", "features", "probe")
"""Columns that tell fits apart."""
VALUES: Final = ("mae", "unit", "chosen", "seconds", "labels", "tests", "seed", "data")
"""What is told of a fit."""


@dataclass(frozen=True)
class Job:
    """Everything that one process does at a time: what is missing of one draw.

    Attributes:
        task: What is predicted.
        n: Labels.
        number: Of the draw.
        left: Name of features, or of a mixture -> probes that are missing.
    """

    task: Task
    n: int
    number: int
    left: Mapping[str, tuple[str, ...]]


def probe_features(
    study: str,
    tasks: Sequence[Task],
    features: Mapping[str, Mapping[str, np.ndarray]],
    probes: Mapping[str, Sequence[str]],
    table: FitTable,
    sizes: Sequence[int] = SIZES,
    draws: int = 20,
    workers: int = 1,
    mixtures: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Fit probes and add a row for each to a table; those that it has are not fitted again.

    All features of a task are given the same draws. Test crystals without a vector (a descriptor that failed) are left
    out for that features alone, and counted in ``tests``. A mixture is a choice among the candidates
    (:data:`pyg_dim.evaluate.regressors.CANDIDATES`) on several features, made from the labels alone like that among the
    candidates on one.

    Args:
        study: Name of the study in the table.
        tasks: What to predict.
        features: Name of a task -> name of features -> [n, D] vectors by row of its data set, NaN where missing.
        probes: Name of features -> probes that are fitted on them.
        table: With :data:`KEYS` and :data:`VALUES`.
        sizes: Numbers of labels; those that a task does not have are left out with a message.
        draws: Label subsets for each size.
        workers: Processes.
        mixtures: Name of a mixture -> names of its features.
    """
    mixtures = mixtures or {}
    jobs = list(_missing(study, tasks, features, probes, table, sizes, draws, mixtures))
    if not jobs:
        return
    run = Parallel(workers, return_as="generator_unordered", mmap_mode="r")
    calls = (delayed(_fit)(*_given(job, study, features[job.task.name], mixtures)) for job in jobs)
    for rows in tqdm(run(calls), total=len(jobs), desc=f"{study}: probes", smoothing=0.02):
        table.add(rows)


def _missing(
    study: str,
    tasks: Sequence[Task],
    features: Mapping[str, Mapping[str, np.ndarray]],
    probes: Mapping[str, Sequence[str]],
    table: FitTable,
    sizes: Sequence[int],
    draws: int,
    mixtures: Mapping[str, Sequence[str]],
) -> Iterator[Job]:
    """Draw after draw, so that a study that is stopped has the same draws of everything."""
    fitting = {task.name: task.fitting(sizes) for task in tasks}
    for number in range(draws):
        for task in tasks:
            wanted = {name: tuple(probes[name]) for name in features[task.name]} | dict.fromkeys(
                mixtures, tuple(CHOICES)
            )
            for n in fitting[task.name]:
                left = {
                    name: tuple(p for p in of if _key(study, task, n, number, name, p) not in table)
                    for name, of in wanted.items()
                }
                left = {name: of for name, of in left.items() if of}
                if left:
                    yield Job(task, n, number, left)


def _key(study: str, task: Task, n: int, number: int, features: str, probe: str) -> dict[str, Any]:
    """What the table knows a fit by."""
    return {"study": study, "task": task.name, "n": n, "draw": number, "features": features, "probe": probe}


def _given(
    job: Job, study: str, features: Mapping[str, np.ndarray], mixtures: Mapping[str, Sequence[str]]
) -> tuple[Any, ...]:
    """What :func:`_fit` needs: the data set itself stays here, since a process would be sent all of it each time."""
    task = job.task
    draw, values = task.draw(job.n, job.number), task.dataset.target(task.target).numpy()
    about = {"unit": task.unit, "seed": task.seed, "data": Path(task.dataset.report.source).name}
    keys = {
        name: {probe: _key(study, task, job.n, job.number, name, probe) | about for probe in of}
        for name, of in job.left.items()
    }
    parts = {name: mixtures[name] for name in job.left if name in mixtures}
    needed = {name: features[name] for name in features if name in job.left or any(name in p for p in parts.values())}
    rows, test = draw.rows.numpy(), draw.test.numpy()
    return needed, rows, values[rows], test, values[test], keys, parts, job.number


def _fit(
    features: Mapping[str, np.ndarray],
    rows: np.ndarray,
    y: np.ndarray,
    test: np.ndarray,
    y_test: np.ndarray,
    keys: Mapping[str, Mapping[str, Mapping[str, Any]]],
    mixtures: Mapping[str, Sequence[str]],
    seed: int,
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    candidates: dict[str, dict[str, Prediction]] = {}

    def add(name: str, found: Mapping[str, Prediction], truth: np.ndarray, labels: int, start: float) -> None:
        about = {"labels": labels, "tests": len(truth), "seconds": round(time.perf_counter() - start, 3)}
        made.extend(
            {**key, **about, "mae": float(np.abs(found[probe].test - truth).mean()), "chosen": found[probe].chosen}
            for probe, key in keys.get(name, {}).items()
        )

    for name, vectors in features.items():
        start = time.perf_counter()
        x, x_test = (vectors[part].astype(np.float64) for part in (rows, test))
        known, scored = np.isfinite(x).all(axis=1), np.isfinite(x_test).all(axis=1)
        mixed = any(name in parts for parts in mixtures.values())
        if mixed and not (known.all() and scored.all()):
            raise ValueError(f"{name} has no vector for some crystals, so it cannot be mixed with others")
        wanted = dict.fromkeys([*keys.get(name, ()), *(CANDIDATES if mixed else ())])
        found = fit_probes(x[known], y[known], x_test[scored], list(wanted), seed)
        if mixed:
            candidates[name] = {f"{name}, {kind}": p for kind, p in candidates_of(found, y).items()}
        add(name, found, y_test[scored], int(known.sum()), start)
    for name, parts in mixtures.items():
        start = time.perf_counter()
        several = {key: prediction for part in parts for key, prediction in candidates[part].items()}
        add(name, {kind: choose(several, y) for kind, choose in CHOICES.items()}, y_test, len(y), start)
    return made
