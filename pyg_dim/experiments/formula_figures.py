"""Tables and figures of pre-training without structures: each computes what it needs, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
import torch

from pyg_dim.evaluate.baselines import FRACTIONS
from pyg_dim.evaluate.figures import property_figure, tsne_coordinates
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.evaluate.regressors import BLEND, DUMMY, PLAIN_FOREST
from pyg_dim.experiments.curves import draw_curves
from pyg_dim.experiments.features import MAGPIE
from pyg_dim.experiments.formula_sets import mean_sites
from pyg_dim.experiments.formula_study import FormulaStudy
from pyg_dim.experiments.pictures import publish
from pyg_dim.experiments.probing import probe_features
from pyg_dim.experiments.scales import STRATEGIES
from pyg_dim.experiments.tasks import ALL, Task
from pyg_dim.experiments.transferring import RANDOM, Start, fine_tune_starts

TABLE_2: Final = "rp-table2"
TABLE_3: Final = "rp-table3"
FIGURE_9: Final = "rp-fig9"
FIGURE_10: Final = "rp-fig10"
UNTRAINED: Final = "untrained"
FINE_TUNED: Final = ("SSL", "FL", "MML", "DIM")
"""Strategies that fine-tuning starts from; frozen vectors are of all, in :data:`STRATEGIES`."""


def fine_tuning(study: FormulaStudy) -> None:
    """Tables 2 and 4: Matbench's five folds, fine-tuned from new parameters and from each strategy.

    Args:
        study: The experiment.
    """
    # What needs no training comes first: the mean of the labels shows whether sets and folds are the official ones.
    _probe(study, TABLE_3, {task.name: _descriptors(study, task, (MAGPIE,)) for task in study.tasks}, (ALL,))
    _fine_tune(study, TABLE_2, (ALL,), study.scale.folds)


def frozen(study: FormulaStudy) -> None:
    """Table 3: random forests on frozen vectors, against shares of the elements and Magpie features.

    Args:
        study: The experiment.
    """
    _probe(study, TABLE_3, {task.name: _features(study, task) for task in study.tasks}, (ALL,))


def fine_tuning_curves(study: FormulaStudy) -> None:
    """Figure 9: the error of fine-tuning against the number of labels, on the same folds.

    Args:
        study: The experiment.
    """
    _fine_tune(study, FIGURE_9, study.scale.sizes, study.scale.curve_folds)
    draw_curves(study, study.transfer_table().read(), FIGURE_9, "start")


def frozen_curves(study: FormulaStudy) -> None:
    """Figure 10: the error of random forests on frozen vectors against the number of labels.

    Args:
        study: The experiment.
    """
    features = {task.name: _features(study, task) for task in study.tasks}
    _probe(study, FIGURE_10, features, study.scale.sizes, study.scale.curve_folds)
    frame = study.probe_table().read()
    draw_curves(study, frame[frame["probe"] == PLAIN_FOREST], FIGURE_10, "features")


def maps(study: FormulaStudy) -> None:
    """Figures 6 to 8: frozen vectors in the plane by t-SNE, coloured by the label; a PNG and a CSV for each set.

    Args:
        study: The experiment.
    """
    for task in study.tasks:
        labels = task.dataset.target(task.target)
        drawn = torch.randperm(len(task.dataset), generator=torch.Generator().manual_seed(0))
        rows = drawn[: study.scale.tsne_formulas].sort().values
        vectors = {name: torch.from_numpy(values)[rows] for name, values in _encoded(study, task).items()}
        points = {name: tsne_coordinates(values) for name, values in vectors.items()}
        title = f"t-SNE of {rows.numel()} formulas of {task.name}, global representation"
        name = f"{task.target} ({task.unit})" if task.unit else task.target
        path = study.directory / f"rp-map-{task.name}-{study.split}.png"
        publish(study, property_figure(points, labels[rows], name, title), path, f"maps/{path.stem}")
        columns = {"formula": [task.dataset.formula(row) for row in rows.tolist()], task.target: labels[rows].numpy()}
        columns |= {f"{name} {axis}": xy[:, k] for name, xy in points.items() for k, axis in enumerate("xy")}
        replace_file(path.with_suffix(".csv"), pd.DataFrame(columns).to_csv(index=False))


def _features(study: FormulaStudy, task: Task) -> dict[str, np.ndarray]:
    return _descriptors(study, task, (MAGPIE, FRACTIONS)) | _encoded(study, task)


def _descriptors(study: FormulaStudy, task: Task, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: study.descriptors(task, name) for name in names}


def _encoded(study: FormulaStudy, task: Task) -> dict[str, np.ndarray]:
    """Global representations, before training and after each strategy."""
    checkpoints = {strategy: study.pretrained(strategy) for strategy in STRATEGIES}
    before = study.representations(task, next(iter(checkpoints.values())), ("global",), trained=False)
    after = {name: study.representations(task, path, ("global",))["global"] for name, path in checkpoints.items()}
    return {UNTRAINED: before["global"]} | after


def _probe(
    study: FormulaStudy,
    name: str,
    features: Mapping[str, Mapping[str, np.ndarray]],
    sizes: Sequence[int],
    folds: int | None = None,
) -> None:
    """Fit random forests, ``blend`` where labels are few, and once for each set the mean of the labels."""
    for task in study.tasks:
        blended = name == TABLE_3 and len(task.dataset) <= study.scale.blended
        probes = dict.fromkeys(features[task.name], (PLAIN_FOREST, BLEND) if blended else (PLAIN_FOREST,))
        probes[MAGPIE] = (DUMMY, *probes[MAGPIE])
        probe_features(
            name, [task], features, probes, study.probe_table(), sizes, folds or study.scale.folds, study.workers
        )


def _fine_tune(study: FormulaStudy, name: str, sizes: Sequence[int], folds: int) -> None:
    checkpoints = {strategy: study.pretrained(strategy) for strategy in FINE_TUNED}
    for task in study.tasks:
        sites = mean_sites(task.dataset)
        for n in task.fitting(sizes):
            labels = n if n != ALL else min(train.numel() for train, _ in task.folds)
            options = study.scale.fine_tuning(labels, sites)
            starts = {RANDOM: Start(checkpoints["SSL"], False, options)}
            starts |= {strategy: Start(path, True, options) for strategy, path in checkpoints.items()}
            fine_tune_starts(name, [task], {task.name: starts}, study.transfer_table(), (n,), folds, study.workers)


FORMULA_FIGURES: Final[dict[str, Callable[[FormulaStudy], None]]] = {
    TABLE_2: fine_tuning,
    TABLE_3: frozen,
    "rp-table4": fine_tuning,
    FIGURE_9: fine_tuning_curves,
    FIGURE_10: frozen_curves,
    "rp-maps": maps,
}
"""By the number in Huang, Magar, Barati Farimani, J. Chem. Inf. Model. 2024, 64, 627; table 4 tests the errors of
table 2."""
