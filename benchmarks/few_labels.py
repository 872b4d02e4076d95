"""The script of docs/few_labels.md on real targets, beside the same one with Magpie features and a random forest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from alternate import Spread
from ase import Atoms
from results import Measured, Table
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor

from pyg_dim import CrystalEmbedder, ProbeRegressor
from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.data.magpie import magpie_features
from pyg_dim.evaluate.report import UNITS
from pyg_dim.evaluate.statistics import paired
from pyg_dim.experiments.folds import make_fold
from pyg_dim.experiments.study import FORMATION, GAP, PHONONS

USUAL: Final = ("Magpie", "random forest")
"""What is compared with, features and model."""


def few_labels(
    data: str = "prototypes", phonons: str = "", seed: int = 0, labels: int = 200, draws: int = 10,
    model: str = "sitenet-dim",
) -> Measured:  # fmt: skip
    """A few labels to predict new crystals: CrystalEmbedder and ProbeRegressor, beside Magpie and a random forest.

    The crystals of --data are the test fold of the experiments in docs/results.md, of which sitenet-dim has seen none;
    labels are drawn among them, and the others are predicted.
    """
    found, rows = Measured(), []
    for source, targets, part in ((data, (FORMATION, GAP), True), (phonons, (PHONONS,), False)):
        if not source:
            found.notes.append(f"left out: {', '.join(targets)}, of which no data were given")
            continue
        dataset = load_dataset(source)
        if absent := [target for target in targets if target not in dataset.labels]:
            found.notes.append(f"left out: {', '.join(absent)}, which the data do not have")
        if len(absent) == len(targets):
            continue
        if part:
            dataset = dataset.subset(make_fold(dataset, "random").test)
        features = features_of(dataset, model)
        for target in targets:
            if target not in absent:
                rows += list(compared(dataset, target, features, model, labels, draws, seed))
    found.tables = [Table(rows)] if rows else []
    return found


def features_of(dataset: CrystalDataset, model: str) -> dict[str, np.ndarray]:
    """[n, D] features by name, float64: of the encoder, as a user has them, of Magpie, and both side by side."""
    crystals = [dataset[row] for row in range(len(dataset))]
    atoms = [Atoms(c.z.numpy(), c.pos.numpy(), cell=c.cell[0].numpy(), pbc=True) for c in crystals]
    vectors = CrystalEmbedder(model).fit_transform(atoms).astype(np.float64)
    magpie = magpie_features(dataset.z, dataset.ptr).numpy()
    return {model: vectors, "Magpie": magpie, f"{model}, Magpie": np.hstack([vectors, magpie])}


def compared(
    dataset: CrystalDataset,
    target: str,
    features: dict[str, np.ndarray],
    model: str,
    labels: int,
    draws: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row for each way, with its errors over the draws against the usual one.

    Raises:
        ValueError: there are no more crystals with the label than are to be learned from.
    """
    y = dataset.target(target).numpy()
    known = np.flatnonzero(np.isfinite(y))
    if len(known) <= labels:
        raise ValueError(f"{target}: {len(known)} labels, of which --labels {labels} would leave none to predict")
    ways: dict[tuple[str, str], Callable[[int], Any]] = {
        ("none", "mean of the labels"): lambda _: DummyRegressor(),
        USUAL: lambda draw: RandomForestRegressor(random_state=draw),
        ("Magpie", "ProbeRegressor"): lambda draw: ProbeRegressor(seed=draw),
        (model, "random forest"): lambda draw: RandomForestRegressor(random_state=draw),
        (model, "ProbeRegressor"): lambda draw: ProbeRegressor(seed=draw),
        (f"{model}, Magpie", "ProbeRegressor"): lambda draw: ProbeRegressor(seed=draw),
    }
    errors: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for draw in range(draws):
        mixed = np.random.default_rng([seed, draw]).permutation(known)
        learned, tested = mixed[:labels], mixed[labels:]
        for (name, kind), make in ways.items():
            x = features.get(name, features["Magpie"])
            predicted = make(draw).fit(x[learned], y[learned]).predict(x[tested])
            errors[name, kind].append(float(np.abs(predicted - y[tested]).mean()))
    unit = dataset.units.get(target) or UNITS[target]
    for (name, kind), values in errors.items():
        against = paired(np.array(values), np.array(errors[USUAL]))
        interval = f"{against.difference:+.3g} [{against.low:+.3g}, {against.high:+.3g}]"
        won = f"{against.verdict}, {interval}, {against.wins}-{against.ties}-{against.losses}"
        yield {
            "target": f"{target}, {unit}",
            "features": name,
            "model": kind,
            "error": Spread.of(values),
            "against Magpie, random forest": "" if (name, kind) == USUAL else won,
            "crystals": len(known),
        }
