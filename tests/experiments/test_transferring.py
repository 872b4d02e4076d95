from __future__ import annotations

import logging

import pytest
import torch

from pyg_dim.experiments import transferring
from pyg_dim.experiments.folds import make_fold
from pyg_dim.experiments.study import FORMATION
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task, fold_task
from pyg_dim.experiments.transferring import KEYS, RANDOM, VALUES, Start, fine_tune_starts
from pyg_dim.training.checkpoints import load_encoder
from pyg_dim.training.finetune import FineTuneOptions, fine_tune

OPTIONS = FineTuneOptions(epochs=2, batch_sites=24)


@pytest.fixture
def task(dataset) -> Task:
    fold = make_fold(dataset, "random")
    return fold_task(FORMATION, dataset, FORMATION, fold.train, fold.test)


@pytest.fixture
def starts(finished) -> dict[str, Start]:
    return {RANDOM: Start(finished.checkpoint, False, OPTIONS), "trained": Start(finished.checkpoint, True, OPTIONS)}


@pytest.fixture
def table(tmp_path) -> FitTable:
    return FitTable(tmp_path / "transfer.csv", KEYS, VALUES)


@pytest.fixture
def fits(monkeypatch) -> list[tuple]:
    """Encoder, labels and seed of each fit that is made."""
    made = []

    def counted(encoder, dataset, target, rows, test_rows, options, seed):
        made.append((encoder, dataset.target(target)[rows].tolist(), seed))
        return fine_tune(encoder, dataset, target, rows, test_rows, options, seed=seed)

    monkeypatch.setattr(transferring, "fine_tune", counted)
    return made


@pytest.fixture(autouse=True)
def _threads():
    """Fits take one thread of their process, which is this one here."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_starts_share_labels_and_seeds_and_no_fit_is_made_twice(task, starts, table, fits):
    def run(draws):
        return fine_tune_starts("study", [task], {FORMATION: starts}, table, (12,), draws)

    run(1)
    assert [made[2] for made in fits] == [0, 0]
    run(2)
    assert [made[2] for made in fits] == [0, 0, 1, 1]
    assert fits[0][1] == fits[1][1]
    assert fits[2][1] == fits[3][1] != fits[0][1]
    again = FitTable(table.path, KEYS, VALUES)
    fine_tune_starts("study", [task], {FORMATION: starts}, again, (12,), 2)
    assert len(fits) == 4

    frame = again.read()
    assert list(frame.columns) == [*KEYS, *VALUES]
    assert frame["start"].tolist() == [RANDOM, "trained"] * 2
    assert frame["draw"].tolist() == [0, 0, 1, 1]
    assert set(frame["seed"]) == {0}
    assert set(frame["labels"]) == {12}
    assert set(frame["tests"]) == {12}
    assert set(frame["unit"]) == {"eV/atom"}
    assert set(frame["data"]) == {"binaries.parquet"}
    assert frame["mae"].nunique() == 4

    draw = task.draw(12, 1)
    encoder, small = starts["trained"].encoder(1), task.dataset.subset(torch.cat([draw.rows, draw.test]))
    expected = fine_tune(encoder, small, FORMATION, torch.arange(12), torch.arange(12, 24), OPTIONS, seed=1)
    assert frame["mae"][3] == pytest.approx(expected.test_mae, rel=1e-4)
    assert frame["best_epoch"][3] == expected.best_epoch
    assert frame["holdout"][3] == pytest.approx(expected.holdout_mae, rel=1e-4)


def test_random_starts_follow_from_the_seed_and_trained_ones_from_the_checkpoint(finished, starts):
    trained = load_encoder(finished.checkpoint).state_dict()
    for seed in (0, 3):
        encoder = starts["trained"].encoder(seed)
        assert all(value.equal(trained[name]) for name, value in encoder.state_dict().items())
    random = {seed: starts[RANDOM].encoder(seed).state_dict() for seed in (0, 3)}
    # The run began with seed 3.
    assert all(value.equal(finished.initial[name]) for name, value in random[3].items())
    assert not random[0]["output.weight"].equal(random[3]["output.weight"])


def test_sizes_beyond_the_labels_are_left_out(task, starts, table, fits, caplog):
    with caplog.at_level(logging.WARNING):
        fine_tune_starts("study", [task], {FORMATION: starts}, table, (1000,), 1)
    assert not fits
    assert len(table) == 0
    assert f"{FORMATION}: 97 labels in training; left out: 1000" in caplog.text
