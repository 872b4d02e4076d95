from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.models import build
from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.training.module import TrainingModule, tag
from pyg_dim.training.run import train


def test_the_optimiser_is_that_of_the_paper():
    module = TrainingModule(DeepInfoMax(build("sitenet")), lr=1e-4, weight_decay=1e-4, seed=0, about={})
    optimiser = module.configure_optimizers()
    assert isinstance(optimiser, torch.optim.AdamW)
    settings = optimiser.param_groups[0]
    assert (settings["lr"], settings["weight_decay"], settings["eps"], settings["amsgrad"]) == (1e-4, 1e-4, 1e-7, True)
    assert sum(p.numel() for p in settings["params"]) == sum(p.numel() for p in module.parameters())


def test_validation_is_the_same_at_every_epoch_for_the_same_parameters_and_training_is_not(options):
    result = train(options(lr=1e-30, weight_decay=0.0, epochs=3))
    events = EventAccumulator(str(result.directory))
    events.Reload()
    val, training = ([event.value for event in events.Scalars(f"{part}/total")] for part in ("val", "train"))
    assert val[0] == val[1] == val[2]
    assert len(set(training)) == 3


def test_steps_epochs_and_parts_draw_different_numbers():
    module = TrainingModule(DeepInfoMax(build("sitenet")), lr=1e-4, weight_decay=0.0, seed=0, about={})
    seeds = {module._step_seed(part, epoch, step) for part in (0, 1) for epoch in range(5) for step in range(50)}
    assert len(seeds) == 500
    module.seed = 1
    assert module._step_seed(0, 0, 0) not in seeds


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("js/local", "val/js/local"),
        ("mae/energy", "val/mae/energy"),
        ("mae/energy/coverage", "detail/val/mae/energy/coverage"),
        ("detail/local_level/js", "detail/val/local_level/js"),
    ],
)
def test_details_have_a_page_of_their_own(name, expected):
    assert tag("val", name) == expected
