"""Losses and gradients that are no numbers: steps are skipped and counted; a run stops when too many are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.cli import main
from pyg_dim.training import module as module_file
from pyg_dim.training.module import TrainingModule

KIND = "loss or gradient that is no number"
ENCODERS = {
    "sitenet": None,
    "cgcnn": {"site_channels": 8, "convolutions": 1, "crystal_channels": 8},  # with batch norms
}


@pytest.fixture
def start(run_file, tmp_path, monkeypatch):
    """``start(model, broken, ...)``: train with some steps broken; exit status."""
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(run_file.read_text())

    def run(model, broken, **changes):
        options = values | changes | {"model": model, "encoder": ENCODERS[model] or values["encoder"]}
        Path("run.yaml").write_text(yaml.safe_dump(options))
        original = TrainingModule.training_step
        seen = []

        def training_step(self, batch, batch_idx):
            loss = original(self, batch, batch_idx)
            seen.append(batch_idx)
            factor = broken(self.current_epoch, len(seen))
            if factor == "gradient":
                loss.register_hook(lambda gradient: gradient * torch.inf)
                return loss
            return loss * factor

        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, "training_step", training_step)
            return main(["train", "--config", "run.yaml"])

    return run


def curve(tag):
    events = EventAccumulator("runs/run", size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def is_sound(path):
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"].values()
    values = [*checkpoint["state_dict"].values(), *(value for entry in state for value in entry.values())]
    return all(value.isfinite().all() for value in values)


SOME = {
    "one step": (lambda epoch, step: torch.nan if step == 2 else 1.0, [1, 0, 0]),
    "the first": (lambda epoch, step: torch.inf if step == 1 else 1.0, [1, 0, 0]),
    "one in each epoch": (lambda epoch, step: torch.nan if step % 5 == 0 else 1.0, [1, 1, 1]),
    "a gradient": (lambda epoch, step: "gradient" if step == 7 else 1.0, [0, 1, 0]),
}


@pytest.mark.parametrize("name", list(SOME))
@pytest.mark.parametrize("model", list(ENCODERS))
def test_a_few_steps_are_skipped_and_counted(faults, start, capsys, model, name):
    broken, expected = SOME[name]
    with faults.injected_into(f"training of {model}", KIND):
        assert start(model, broken) == 0
        assert curve("skipped_steps") == expected
        assert capsys.readouterr().out.count("were skipped") == sum(map(bool, expected))
        assert is_sound("runs/run/last.ckpt")
        assert is_sound("runs/run/best.ckpt")


@pytest.mark.parametrize("model", list(ENCODERS))
def test_an_epoch_that_is_mostly_skipped_ends_the_run(faults, start, capsys, model):
    with faults.injected_into(f"training of {model}", KIND):
        assert start(model, lambda epoch, step: torch.nan if epoch == 1 else 1.0) == 1
        said = capsys.readouterr().err
        assert "is not a finite number in epoch 2: try an --lr below" in said
        assert "checkpoints of earlier epochs are kept" in said
        assert is_sound("runs/run/last.ckpt")
        # Without the fault the run goes on from there.
        assert main(["train", "--resume", "runs/run/last.ckpt"]) == 0


def test_many_in_a_row_end_the_run_within_an_epoch(faults, start, capsys, monkeypatch):
    monkeypatch.setattr(module_file, "CHECK_EVERY", 1)
    monkeypatch.setattr(module_file, "MAX_SKIPPED", 3)
    with faults.injected_into("training of sitenet", KIND):
        assert start("sitenet", lambda epoch, step: torch.nan if step > 6 else 1.0, batch_sites=8) == 1
        assert "in 3 steps in a row, is not a finite number in epoch 1" in capsys.readouterr().err
        assert not Path("runs/run/last.ckpt").exists()
