from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from joblib import parallel_config

from pyg_dim.evaluate.regressors import AUTO, BLEND, CANDIDATES, DUMMY, LEAST_SQUARES, RIDGE, fit_probes
from pyg_dim.experiments import probing
from pyg_dim.experiments.folds import make_fold
from pyg_dim.experiments.probing import KEYS, VALUES, probe_features
from pyg_dim.experiments.study import FORMATION, GAP
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task, fold_task

PROBES = {"numbers": (DUMMY, LEAST_SQUARES, RIDGE), "same numbers": (LEAST_SQUARES,), "noise": (RIDGE,)}


@pytest.fixture
def tasks(dataset) -> list[Task]:
    fold = make_fold(dataset, "random")
    return [fold_task(name, dataset, name, fold.train, fold.test) for name in (FORMATION, GAP)]


@pytest.fixture
def vectors(dataset) -> dict[str, np.ndarray]:
    """Atomic numbers, from which both labels follow but for the prototype; and what says nothing."""
    z = dataset.z.reshape(-1, 2).numpy()
    noise = np.random.default_rng(0).normal(size=(120, 4))
    numbers = np.hstack([z, z**2]).astype(np.float32)
    return {"numbers": numbers, "same numbers": numbers.copy(), "noise": noise.astype(np.float32)}


@pytest.fixture
def table(tmp_path) -> FitTable:
    return FitTable(tmp_path / "probes.csv", KEYS, VALUES)


@pytest.fixture
def fits(monkeypatch) -> list[tuple]:
    """Labels, tests, seed and probes of each fit that is made."""
    made = []

    def counted(x, y, x_test, probes, seed):
        made.append((tuple(y), len(x_test), seed, tuple(probes)))
        return fit_probes(x, y, x_test, probes, seed)

    monkeypatch.setattr(probing, "fit_probes", counted)
    return made


def run(tasks, vectors, table, sizes=(10, 20), draws=3, **more):
    probe_features("study", tasks, {task.name: vectors for task in tasks}, PROBES, table, sizes, draws, **more)
    return table.read()


def test_there_is_a_row_for_every_fit_and_none_is_made_twice(tasks, vectors, table, fits):
    frame = run(tasks, vectors, table)
    assert list(frame.columns) == [*KEYS, *VALUES]
    probes = sum(len(names) for names in PROBES.values())
    assert len(frame) == len(frame[list(KEYS)].drop_duplicates()) == 2 * 2 * 3 * probes
    assert len(fits) == 2 * 2 * 3 * 3
    assert set(frame["unit"]) == {"eV", "eV/atom"}
    assert set(frame["data"]) == {"binaries.parquet"}
    assert set(frame["study"]) == {"study"}
    assert frame["labels"].equals(frame["n"])
    tests = frame.groupby("task")["tests"].unique()
    assert tests[FORMATION].tolist() == [12]
    assert tests[GAP].tolist() == [tasks[1].draw(10, 0).test.numel()]
    fits.clear()
    assert run(tasks, vectors, FitTable(table.path, KEYS, VALUES)).equals(frame)
    assert not fits
    # More draws are made alone, and one that is lost.
    lines = table.path.read_text().splitlines(keepends=True)
    lost = next(line for line in lines if f",{RIDGE}," in line)
    table.path.write_text("".join(line for line in lines if line is not lost))
    longer = run(tasks, vectors, FitTable(table.path, KEYS, VALUES), draws=4)
    assert [made[3] for made in fits].count((RIDGE,)) == 1 + 2 * 2
    assert len(fits) == 1 + 2 * 2 * 3
    assert len(longer) == 2 * 2 * 4 * probes


def test_errors_are_those_of_the_draw(tasks, vectors, table):
    frame = run(tasks, vectors, table).set_index(list(KEYS))
    for task in tasks:
        draw, y = task.draw(20, 2), task.dataset.target(task.target).numpy()
        x = vectors["numbers"].astype(np.float64)
        for probe, fit in fit_probes(x[draw.rows], y[draw.rows], x[draw.test], PROBES["numbers"], seed=2).items():
            expected = np.abs(fit.test - y[draw.test]).mean()
            assert frame.loc[("study", task.name, 20, 2, "numbers", probe), "mae"] == pytest.approx(expected, rel=1e-6)
    # What is known decides.
    medians = frame["mae"].groupby(["task", "features", "probe"]).median()
    assert medians[GAP, "numbers", LEAST_SQUARES] < 0.01 * medians[GAP, "numbers", DUMMY]
    assert medians[GAP, "noise", RIDGE] > 0.5 * medians[GAP, "numbers", DUMMY]


def test_all_features_have_the_same_draws(tasks, vectors, table, fits):
    frame = run(tasks, vectors, table)
    for _, some in frame[frame["probe"] == LEAST_SQUARES].groupby(["task", "n", "draw"]):
        assert len(some) == 2
        assert some["mae"].nunique() == 1
    assert len({made[0] for made in fits}) == len(fits) // 3
    assert {made[2] for made in fits} == {0, 1, 2}


def test_crystals_without_a_vector_are_left_out_and_counted(tasks, vectors, table, fits):
    energy = tasks[:1]
    draw = energy[0].draw(10, 0)
    vectors["noise"][draw.test[:3]] = np.nan
    vectors["noise"][draw.rows[4], 1] = np.nan
    frame = run(energy, vectors, table, sizes=(10,), draws=1).set_index("features")
    assert frame.loc["noise", "tests"] == 12 - 3
    assert frame.loc["noise", "labels"] == 9
    assert frame.loc["same numbers", "tests"] == 12
    assert np.isfinite(frame["mae"].to_numpy(float)).all()
    y = energy[0].dataset.target(FORMATION)
    (noise,) = (made for made in fits if made[3] == PROBES["noise"])
    assert noise[:2] == (tuple(y[np.delete(draw.rows.numpy(), 4)].tolist()), 9)


def test_sizes_beyond_the_labels_are_left_out(tasks, vectors, table, caplog):
    with caplog.at_level(logging.WARNING):
        frame = run(tasks, vectors, table, sizes=(10, 90), draws=1)
    assert set(frame[frame["task"] == FORMATION]["n"]) == {10, 90}
    assert set(frame[frame["task"] == GAP]["n"]) == {10}
    labels = int(torch.isfinite(tasks[1].dataset.target(GAP)[tasks[1].folds[0][0]]).sum())
    assert f"{GAP}: {labels} labels in training; left out: 90" in caplog.text


def test_a_study_that_is_stopped_has_whole_draws(tasks, vectors, table, monkeypatch):
    original, rows = FitTable.add, []

    def add(self, new):
        original(self, new)
        rows.extend(new)
        if len(rows) > 25:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FitTable, "add", add)
        with pytest.raises(KeyboardInterrupt):
            run(tasks, vectors, table)
    assert 25 < len(FitTable(table.path, KEYS, VALUES)) < 60
    draws = table.read()["draw"]
    assert (draws == 0).sum() == 20
    assert set(draws) == {0, 1}
    assert len(run(tasks, vectors, FitTable(table.path, KEYS, VALUES))) == 60


def test_several_workers_find_the_same(tasks, vectors, table, tmp_path):
    other = FitTable(tmp_path / "other.csv", KEYS, VALUES)
    frames = [run(tasks, vectors, table)]
    with parallel_config("threading"):  # processes take long to start
        frames.append(run(tasks, vectors, other, workers=2))
    one, two = (frame.drop(columns="seconds").sort_values(list(KEYS), ignore_index=True) for frame in frames)
    assert one.equals(two)


def test_mixtures_choose_among_the_candidates_of_their_features(tasks, vectors, table, fits):
    mixtures = {"both": ("numbers", "noise")}
    frame = run(tasks, vectors, table, sizes=(30,), draws=2, mixtures=mixtures).set_index(list(KEYS))
    # The rows of the features themselves, and a choice and a blend of the mixture.
    assert len(frame) == 2 * 2 * (5 + 2)
    assert len(fits) == 2 * 2 * 3
    task = tasks[0]
    draw, y = task.draw(30, 1), task.dataset.target(FORMATION).numpy()
    several = {}
    for name in mixtures["both"]:
        x = vectors[name].astype(np.float64)
        found = fit_probes(x[draw.rows], y[draw.rows], x[draw.test], CANDIDATES, seed=1)
        several |= {f"{name}, {probe}": prediction for probe, prediction in found.items()}
    unseen = {name: np.abs(prediction.unseen - y[draw.rows]).mean() for name, prediction in several.items()}
    best = min(unseen, key=unseen.get)
    row = frame.loc[("study", FORMATION, 30, 1, "both", AUTO)]
    assert row["chosen"] == best
    assert row["mae"] == pytest.approx(np.abs(several[best].test - y[draw.test]).mean(), rel=1e-6)
    blended = frame.loc[("study", FORMATION, 30, 1, "both", BLEND)]
    assert blended["chosen"].startswith("numbers, ")
    assert (row["labels"], row["tests"]) == (30, 12)

    fits.clear()
    lines = [line for line in table.path.read_text().splitlines(keepends=True) if f",1,both,{BLEND}," not in line]
    table.path.write_text("".join(lines))
    again = run(tasks, vectors, FitTable(table.path, KEYS, VALUES), sizes=(30,), draws=2, mixtures=mixtures)
    # What a mixture needs is fitted again, and nothing else.
    assert [set(made[3]) for made in fits] == [set(CANDIDATES)] * 4
    again = again.set_index(list(KEYS))["mae"]
    assert len(again) == len(frame)
    assert again.sort_index().equals(frame["mae"].sort_index())


def test_features_with_gaps_cannot_be_mixed(tasks, vectors, table):
    vectors["noise"][tasks[0].draw(10, 0).test[0]] = np.nan
    with pytest.raises(ValueError, match="noise has no vector for some crystals, so it cannot be mixed"):
        run(tasks, vectors, table, sizes=(10,), draws=1, mixtures={"both": ("numbers", "noise")})
