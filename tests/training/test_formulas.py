"""Runs on materials without a structure, from a table to fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.data import load_dataset
from pyg_dim.data.elements import symbols
from pyg_dim.models import build
from pyg_dim.objectives.supervised import Supervised
from pyg_dim.training.checkpoints import load_encoder, read_checkpoint
from pyg_dim.training.finetune import FineTuneOptions, fine_tune
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.run import train
from pyg_dim.training.setup import prepare_data

TINY = {"site_channels": 8, "layers": 1, "heads": 2, "hidden_channels": 8, "trunk": [16], "crystal_channels": 12,
        "element_channels": 6}  # fmt: skip
CATIONS, ANIONS = ("Li", "Na", "K", "Mg0.5", "Ca0.5", "Al0.3"), ("F", "Cl", "Br", "O0.5", "S0.5", "N0.3")


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Path of 72 formulas with the label "energy", some missing, and a bad row."""
    path = tmp_path_factory.mktemp("formulas") / "formulas.csv"
    lines = ["formula,energy"]
    for number, (a, x) in enumerate((a, x) for a in CATIONS for x in ANIONS):
        lines += [
            f"{a}{x},{len(a) - len(x)}",
            f"{a}2{x}3,{number / 7}" if "." not in a else f"Fe{a}{x},{number % 7 or ''}",
        ]
    path.write_text("\n".join([*lines, "D2O,1"]) + "\n")
    return path


@pytest.fixture
def formula_options(table, tmp_path):
    """``formula_options(epochs=3, ...)``: options of a run of a second or two."""

    def make(**changes) -> TrainOptions:
        values = {
            "model": "roost", "data": str(table), "epochs": 1, "batch_sites": 48, "lr": 1e-3, "accelerator": "cpu",
            "compile": False, "logdir": str(tmp_path / "runs"), "val_fraction": 0.2, "encoder": dict(TINY),
            "barlow_channels": 16,
        }  # fmt: skip
        return TrainOptions(**(values | changes))

    return make


OWN = {
    "deep_infomax": ("js/local", "js/global", "kl/local", "kl/global"),
    "barlow_twins": ("barlow/on_diagonal", "barlow/off_diagonal"),
    "fingerprint": ("mse/fingerprint",),
    "supervised": ("mae/energy",),
}
STRATEGIES = [*OWN, "deep_infomax+fingerprint+barlow_twins+supervised"]


@pytest.mark.parametrize("objective", STRATEGIES)
def test_every_strategy_runs_and_starts_fine_tuning(formula_options, objective) -> None:
    target = {"target": "energy"} if "supervised" in objective else {}
    result = train(formula_options(objective=objective, **target))
    events = EventAccumulator(str(result.directory), size_guidance={"scalars": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for part in ("train", "val"):
        assert {f"{part}/{name}" for own in objective.split("+") for name in ("total", *OWN[own])} <= scalars
    assert result.summary is not None
    assert {"energy"} <= set(result.summary["name"])
    checkpoint = result.directory / "last.ckpt"
    fine = train(
        formula_options(objective="supervised", target="energy", init=str(checkpoint), lr=1e-30, weight_decay=0.0)
    )
    first, second = load_encoder(checkpoint).state_dict(), load_encoder(fine.directory / "last.ckpt").state_dict()
    mine = [name for name in second if not name.startswith("decoder.")]
    assert all(first[name].equal(second[name]) for name in mine)


def test_the_run_says_what_it_leaves_out(formula_options, caplog) -> None:
    caplog.set_level("INFO", logger="pyg_dim")
    train(formula_options())
    assert "false samples that need structures, which roost does not see: left out: polymorph" in caplog.text
    assert "permutation at message_levels" in caplog.text
    assert "isotope of hydrogen, write H: 1" in caplog.text


def test_a_resumed_run_is_the_whole_run(formula_options) -> None:
    whole = train(formula_options(name="whole", epochs=3, objective="deep_infomax+barlow_twins"))
    half = formula_options(name="half", objective="deep_infomax+barlow_twins")
    checkpoint = train(half).directory / "last.ckpt"
    resumed = train(replace(half, epochs=3, resume=str(checkpoint)))
    ours, theirs = (read_checkpoint(run.directory / "last.ckpt")["state_dict"] for run in (resumed, whole))
    assert all(ours[name].equal(value) for name, value in theirs.items())


def test_amounts_are_part_of_what_the_data_are(formula_options, table, tmp_path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("Li2F3", "Li3F2"))
    one, two = (prepare_data(formula_options(data=str(path))).summary("x")["fingerprint"] for path in (table, other))
    assert one != two
    double = prepare_data(formula_options(precision="64")).summary("x")["fingerprint"]
    assert double == one


def test_a_table_of_elements_goes_with_the_checkpoint(formula_options, tmp_path, table) -> None:
    path = tmp_path / "elements.csv"
    rows = np.random.default_rng(0).normal(size=(103, 4))
    path.write_text("\n".join(f"{s},{','.join(map(str, row))}" for s, row in zip(symbols()[1:], rows, strict=True)))
    first = train(formula_options(encoder=TINY | {"elements": str(path)}, name="first"))
    path.unlink()
    checkpoint = first.directory / "last.ckpt"
    options = formula_options(name="first", encoder=read_checkpoint(checkpoint)["pyg_dim"]["encoder"])
    resumed = train(replace(options, epochs=2, resume=str(checkpoint)))
    assert resumed.summary is not None
    # Vectors of the untrained encoder beside the trained one, too.
    assert np.isfinite(resumed.summary.loc[resumed.summary["section"] == "probe", "untrained_median"]).all()
    encoder = load_encoder(checkpoint)
    torch.testing.assert_close(encoder.elements.vectors[1:], torch.from_numpy(rows).float())


def test_crystals_serve_as_well(options) -> None:
    result = train(options(model="roost", encoder=dict(TINY), target="energy", epochs=1))
    assert {"val/js/local", "val/js/global"} <= set(result.metrics)
    assert result.summary is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "sitenet", "encoder": {}},
            "holds formulas, and --model sitenet needs structures: use --model roost",
        ),
        ({"kinds": "polymorph"}, "--kinds polymorph needs structures, which roost does not see: add other"),
        ({"objective": "barlow_twins", "displacement": 0.1}, "--displacement moves sites, and roost sees none"),
        ({"objective": "fingerprint", "fingerprints": "magpie,radial"}, "no fingerprint 'radial': take 'magpie' alone"),
        ({"oxidation": "guess"}, "no oxidation states here: use zero"),
        ({"objective": "supervised", "target": "gap"}, "has no target column 'gap'; its labels are 'energy'"),
    ],
)
def test_what_has_no_meaning_is_refused(formula_options, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        train(formula_options(**changes))


def test_fine_tuning_on_few_labels(table) -> None:
    dataset = load_dataset(table)
    known = dataset.target("energy").isfinite().nonzero()[:, 0]
    torch.manual_seed(0)
    encoder = build("roost", **TINY)
    options = FineTuneOptions(epochs=3, loss="robust_l1", head="residual", head_channels=8)
    result = fine_tune(encoder, dataset, "energy", known[:40], known[40:], options)
    again = fine_tune(encoder, dataset, "energy", known[:40], known[40:], options)
    assert result.predictions.equal(again.predictions)
    assert result.epochs == 3
    expected = (result.predictions - dataset.target("energy")[known[40:]]).abs().mean()
    assert result.test_mae == pytest.approx(float(expected))
    for wrong in ({"loss": "huber"}, {"head": "deep"}):
        name = next(iter(wrong))
        with pytest.raises(ValueError, match=f"unknown {name}"):
            FineTuneOptions(**wrong)
        with pytest.raises(ValueError, match=f"unknown {name}"):
            Supervised(encoder, ["energy"], **wrong)
