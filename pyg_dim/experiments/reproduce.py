"""The figures of the papers: each computes what it needs; what another one has computed is not done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from pyg_dim.evaluate.regressors import (
    AUTO,
    BLEND,
    DUMMY,
    EXTRA_TREES,
    GAUSSIAN_PROCESS,
    LEAST_SQUARES,
    MEDIAN_TREES,
    NETWORK,
    RANDOM_FOREST,
    RIDGE,
)
from pyg_dim.experiments.features import MAGPIE, WITH_MAGPIE
from pyg_dim.experiments.maps import draw_map
from pyg_dim.experiments.pictures import draw_boxes
from pyg_dim.experiments.probing import SIZES, probe_features
from pyg_dim.experiments.scales import ABLATIONS, FINE_TUNING, LEVERS, TUNING_LEVERS
from pyg_dim.experiments.study import FORMATION, GAP, MORE, PHONONS, Study
from pyg_dim.experiments.tasks import FOLDS, Task
from pyg_dim.experiments.transferring import RANDOM, Start, fine_tune_starts

PAPER: Final = (LEAST_SQUARES, NETWORK)
"""Probes of Moran et al. 2025."""
REGULARISED: Final = (RIDGE, MEDIAN_TREES, GAUSSIAN_PROCESS, AUTO, BLEND)
REPRESENTATIONS: Final = "representations"
ABLATION: Final = "ablation"
LEVER: Final = "levers"
TRANSFER: Final = "transfer"
TUNING: Final = "tuning"
MATBENCH: Final = "matbench"

_READOUTS: Final = {
    "dim": ("global", "full"), "combined": ("global", "full", "decoded"), MORE: ("global", "full", "decoded"),
}  # fmt: skip
"""Of each recipe; :data:`MORE` where a study has more crystals to pre-train on."""
_PROBES: Final = {
    MAGPIE: (DUMMY, LEAST_SQUARES, *REGULARISED, RANDOM_FOREST, EXTRA_TREES),
    "ofm": (LEAST_SQUARES, *REGULARISED),
    "xrd": (LEAST_SQUARES, *REGULARISED),
    "untrained global": (*PAPER, *REGULARISED),
    "untrained full": REGULARISED,
    "dim global": (*PAPER, *REGULARISED),
    "dim full": REGULARISED,
    **{f"{of} {readout}": REGULARISED for of in ("combined", MORE) for readout in _READOUTS[of]},
    **{f"{of} {readout}{WITH_MAGPIE}": (AUTO, BLEND) for of, readouts in _READOUTS.items() for readout in readouts},
}
"""What is compared, and by which probes."""
MIXTURES: Final = {
    "untrained": ("untrained global", "untrained full"),
    **{of: tuple(f"{of} {readout}" for readout in readouts) for of, readouts in _READOUTS.items()},
    **{
        of + WITH_MAGPIE: (*(f"{of} {readout}{WITH_MAGPIE}" for readout in readouts), MAGPIE)
        for of, readouts in _READOUTS.items()
    },
}
"""Readouts of one encoder that the labels choose among, alone and with the Magpie vector appended to each."""
_STRUCTURE: Final = ("ofm", "xrd")
"""Costly descriptors, left out of the version without shared formulas: they have not been trained on any."""


def representations(study: Study, *names: str) -> None:
    """Figures 8 and 13: probes on frozen representations and descriptors.

    Args:
        study: The experiment.
        *names: Tasks.
    """
    tasks = study.tasks(names)
    features = {task.name: _features(study, task) for task in tasks}
    shared = set.intersection(*(set(of_task) for of_task in features.values()))
    mixtures = {name: parts for name, parts in MIXTURES.items() if shared.issuperset(parts)}
    table, draws = study.probe_table(), study.scale.draws
    probe_features(REPRESENTATIONS, tasks, features, _PROBES, table, SIZES, draws, study.workers, mixtures)
    draw_boxes(study, table.read(), REPRESENTATIONS, "features", names)


def _features(study: Study, task: Task) -> dict[str, np.ndarray]:
    costly = _STRUCTURE if study.split == "random" else ()
    found = {name: study.descriptors(task, name) for name in (MAGPIE, *costly)}
    before = study.representations(task, study.pretrained("dim"), ("global", "full"), trained=False)
    found |= {f"untrained {readout}": vectors for readout, vectors in before.items()}
    for recipe, readouts in _READOUTS.items():
        if recipe == MORE and study.unlabelled is None:
            continue
        wanted = (*readouts, *(readout + WITH_MAGPIE for readout in readouts))
        after = study.representations(task, study.pretrained(recipe), wanted)
        found |= {f"{recipe} {readout}": vectors for readout, vectors in after.items()}
    return found


def ablation(study: Study) -> None:
    """Figure 11: kinds of false samples one by one, all, without noise, with joint levels.

    Args:
        study: The experiment.
    """
    tasks = study.tasks((FORMATION, GAP))
    checkpoints = {name: study.ablated(name) for name in ABLATIONS}
    untrained = checkpoints["all"]
    features = {
        task.name: {
            name: study.representations(task, checkpoint, ("global",))["global"]
            for name, checkpoint in checkpoints.items()
        }
        | {"untrained": study.representations(task, untrained, ("global",), trained=False)["global"]}
        for task in tasks
    }
    probes = dict.fromkeys((*ABLATIONS, "untrained"), (LEAST_SQUARES, RIDGE))
    table = study.probe_table()
    probe_features(ABLATION, tasks, features, probes, table, SIZES, study.scale.draws, study.workers)
    draw_boxes(study, table.read(), ABLATION, "features", (FORMATION, GAP))


def levers(study: Study) -> None:
    """What each part of the recipe gives, by probes: one left out, changed or added at a time.

    Formation energy and band gap are measured on the held-out part of the training fold, which choices may look at.

    Args:
        study: The experiment.
    """
    tasks = [*study.development_tasks(), *study.tasks((PHONONS,))]
    checkpoints = {name: study.levered(name) for name in LEVERS}
    features = {
        task.name: {
            name: study.representations(task, checkpoint, ("full",))["full"] for name, checkpoint in checkpoints.items()
        }
        for task in tasks
    }
    table = study.probe_table()
    probe_features(LEVER, tasks, features, dict.fromkeys(LEVERS, (BLEND,)), table, SIZES, study.scale.draws,
                   study.workers)  # fmt: skip
    draw_boxes(study, table.read(), LEVER, "features", [task.name for task in tasks])


def tuning_levers(study: Study) -> None:
    """What each option of fine-tuning gives, from one pre-trained encoder, on the crystals of :func:`levers`.

    With the smallest number of labels and the third.

    Args:
        study: The experiment.
    """
    tasks = [*study.development_tasks(), *study.tasks((PHONONS,))]
    table, checkpoint, draws = study.transfer_table(), study.levered("combined"), study.scale.transfer_draws
    for n in SIZES[::2]:
        starts = {name: Start(checkpoint, True, replace(FINE_TUNING[n], **of)) for name, of in TUNING_LEVERS.items()}
        fine_tune_starts(TUNING, tasks, {task.name: starts for task in tasks}, table, (n,), draws, study.workers)
    draw_boxes(study, table.read(), TUNING, "start", [task.name for task in tasks])


_OTHER: Final = {FORMATION: GAP, GAP: FORMATION, PHONONS: FORMATION}
"""The target whose supervised model is a start for another one."""


def transfer(study: Study) -> None:
    """Figures 7 and S1: fine-tuning from new parameters, from pre-training, and from a model of another target.

    Args:
        study: The experiment.
    """
    tasks = study.tasks()
    table = study.transfer_table()
    for n in SIZES:
        options = FINE_TUNING[n]
        starts = {}
        for task in tasks:
            combined, other = study.pretrained("combined"), study.supervised(_OTHER[task.name])
            starts[task.name] = {
                RANDOM: Start(combined, False, options),
                "combined": Start(combined, True, options),
                "dim": Start(study.pretrained("dim"), True, options),
                "supervised on another target": Start(other, True, options),
            }
        fine_tune_starts(TRANSFER, tasks, starts, table, (n,), study.scale.transfer_draws, study.workers)
    draw_boxes(study, table.read(), TRANSFER, "start", (FORMATION, GAP, PHONONS))


def matbench(study: Study) -> None:
    """Matbench phonons: the official five folds, all training labels, frozen and fine-tuned.

    Args:
        study: The experiment, with the split "random".

    Raises:
        ValueError: Another split.
    """
    if study.split != "random":
        raise ValueError("matbench has folds of its own: --split random")
    (task,) = study.tasks((PHONONS,))
    labels = (min(train.numel() for train, _ in task.folds),)
    mixtures = {name: parts for name, parts in MIXTURES.items() if name.startswith("combined")}
    names = {part for parts in mixtures.values() for part in parts}
    features = {task.name: {name: values for name, values in _features(study, task).items() if name in names}}
    probes = dict.fromkeys(names, (GAUSSIAN_PROCESS, AUTO, BLEND))
    table = study.probe_table()
    probe_features(MATBENCH, [task], features, probes, table, labels, FOLDS, study.workers, mixtures)
    options = FINE_TUNING[1000]
    combined = study.pretrained("combined")
    starts = {
        task.name: {
            RANDOM: Start(combined, False, options),
            "combined": Start(combined, True, options),
        }
    }
    fine_tune_starts(MATBENCH, [task], starts, study.transfer_table(), labels, FOLDS, study.workers)


FIGURES: Final[dict[str, Callable[[Study], object]]] = {
    "fig6": lambda study: draw_map(study, "family"),
    "fig7": transfer,
    "fig8": lambda study: representations(study, FORMATION, GAP),
    "fig9": lambda study: draw_map(study, FORMATION),
    "fig10": lambda study: draw_map(study, GAP),
    "fig11": ablation,
    "fig13": lambda study: representations(study, PHONONS),
    "figS1": transfer,
    "levers": levers,
    "tuning-levers": tuning_levers,
    "matbench": matbench,
}
"""By the number of the figure in Moran et al. 2025; those without one are not in it."""
