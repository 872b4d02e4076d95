"""Transfer learning: the error of fine-tuned encoders from several starts, on shared labels and seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.experiments.features import untrained_encoder
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task
from pyg_dim.models import Encoder
from pyg_dim.training.checkpoints import load_encoder
from pyg_dim.training.finetune import FineTuneOptions, fine_tune

KEYS: Final = ("study", "task", "n", "draw", "start")
"""Columns that tell fits apart."""
VALUES: Final = ("mae", "unit", "holdout", "epochs", "best_epoch", "seconds", "labels", "tests", "seed", "data")
"""What is told of a fit."""
RANDOM: Final = "random"


@dataclass(frozen=True)
class Start:
    """Where fine-tuning starts.

    Attributes:
        checkpoint: Checkpoint of a run.
        trained: Its encoder as it is; else one of the same shape with new parameters, from the seed of each fit.
        options: How it is fine-tuned; new parameters learn at the rate of the head.
    """

    checkpoint: Path
    trained: bool
    options: FineTuneOptions

    @property
    def fine_tuning(self) -> FineTuneOptions:
        """The options of this start."""
        return self.options if self.trained else replace(self.options, encoder_lr=self.options.lr)

    def encoder(self, seed: int) -> Encoder:
        """Build the encoder that a fit starts from.

        Args:
            seed: Of the new parameters, where it is not trained.

        Returns:
            The encoder.
        """
        return load_encoder(self.checkpoint) if self.trained else untrained_encoder(self.checkpoint, seed)


def fine_tune_starts(
    study: str,
    tasks: Sequence[Task],
    starts: Mapping[str, Mapping[str, Start]],
    table: FitTable,
    sizes: Sequence[int],
    draws: int,
    workers: int = 1,
) -> None:
    """Fine-tune from several starts and add a row for each fit to a table; those that it has are not made again.

    Draw k has the same labels and the same seed for all starts.

    Args:
        study: Name of the study in the table.
        tasks: What to predict.
        starts: Name of a task -> name of a start -> the start.
        table: With :data:`KEYS` and :data:`VALUES`.
        sizes: Numbers of labels; those that a task does not have are left out with a message.
        draws: Label subsets, and seeds, for each size.
        workers: Processes.
    """
    jobs = list(_missing(study, tasks, starts, table, sizes, draws))
    run = Parallel(workers, return_as="generator_unordered")
    calls = (delayed(_fit)(*_given(study, *job)) for job in jobs)
    for row in tqdm(run(calls) if jobs else (), total=len(jobs), desc=f"{study}: fine-tuning", smoothing=0.02):
        table.add([row])


def _missing(
    study: str,
    tasks: Sequence[Task],
    starts: Mapping[str, Mapping[str, Start]],
    table: FitTable,
    sizes: Sequence[int],
    draws: int,
) -> Iterator[tuple[Task, int, int, str, Start]]:
    """Draw after draw, so that a study that is stopped has the same draws of everything."""
    fitting = {task.name: task.fitting(sizes) for task in tasks}
    for number in range(draws):
        for task in tasks:
            for n in fitting[task.name]:
                for name, start in starts[task.name].items():
                    if _key(study, task, n, number, name) not in table:
                        yield task, n, number, name, start


def _key(study: str, task: Task, n: int, number: int, start: str) -> dict[str, Any]:
    return {"study": study, "task": task.name, "n": n, "draw": number, "start": start}


def _given(
    study: str, task: Task, n: int, number: int, name: str, start: Start
) -> tuple[dict[str, Any], Start, CrystalDataset, str, int, int]:
    """What :func:`_fit` needs: of the data set the crystals of the draw alone, labels before tests."""
    draw = task.draw(n, number)
    about = {"unit": task.unit, "seed": task.seed, "data": Path(task.dataset.report.source).name}
    small = task.dataset.subset(torch.cat([draw.rows, draw.test]))
    return _key(study, task, n, number, name) | about, start, small, task.target, draw.rows.numel(), number


def _fit(
    about: Mapping[str, Any], start: Start, dataset: CrystalDataset, target: str, labels: int, seed: int
) -> dict[str, Any]:
    # Each process has one core; PyTorch and the kernels would start a team of threads in each.
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows = torch.arange(len(dataset))
    found = fine_tune(start.encoder(seed), dataset, target, rows[:labels], rows[labels:], start.fine_tuning, seed=seed)
    return {
        **about, "mae": found.test_mae, "holdout": found.holdout_mae, "epochs": found.epochs,
        "best_epoch": found.best_epoch, "seconds": round(time.perf_counter() - begin, 2), "labels": labels,
        "tests": len(dataset) - labels,
    }  # fmt: skip
