"""Splits of a data set."""

from __future__ import annotations

import logging
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.composition import chemical_system_groups, composition_groups
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.index_sets import load_index_sets

_LOGGER = logging.getLogger(__name__)

SplitRule = Literal["formula", "chemical_system", "random"]
SPLIT_RULES: Final = get_args(SplitRule)

MATBENCH_SIZES: Final = (312, 636, 1265, 4604, 4764, 4921, 5680, 10987, 18928, 106113, 132752)
"""Rows of the tasks of Matbench v0.1."""
_MATBENCH_CLASSES: Final = (4921, 5680, 106113)
"""Rows of the tasks that tell classes apart; matbench_mp_is_metal has as many as the regression matbench_mp_gap."""
_MATBENCH_FOLDS: Final = 5
_MATBENCH_SEED: Final = 18012019


def split(
    dataset: CrystalDataset, val_fraction: float = 0.1, seed: int = 0, by: SplitRule = "formula"
) -> tuple[Tensor, Tensor]:
    """Random split in which crystals that belong together are on the same side.

    Where all crystals have the same formula or elements, they are split one by one, with a warning. A single crystal
    goes to training.

    Args:
        dataset: n crystals.
        val_fraction: share of crystals in the validation part; met to within the largest group.
        seed: seed of the choice.
        by: what belongs together: ``"formula"``, all crystals of one reduced formula (polymorphs);
            ``"chemical_system"``, all of the same elements in whatever ratio; ``"random"``, nothing.

    Returns:
        Rows of the training part (never empty) and of the validation part (empty for ``val_fraction=0`` or a single
        crystal), each in ascending order.

    Raises:
        ValueError: ``val_fraction`` is not in [0, 1), an unknown rule, or the data set is empty.
    """
    n = len(dataset)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must lie in [0, 1), not {val_fraction}")
    if by not in SPLIT_RULES:
        raise ValueError(f"by must be one of {', '.join(SPLIT_RULES)}, not {by!r}")
    if n == 0:
        raise ValueError("the data set is empty: there is nothing to split")
    group = np.arange(n)
    if by != "random":
        together = (composition_groups if by == "formula" else chemical_system_groups)(dataset).numpy()
        if together.max() > 0 or n == 1:
            group = together
        elif by == "formula":
            _LOGGER.warning(
                "all %d crystals have the formula %s: the split separates polymorphs", n, dataset.formula(0)
            )
        else:
            _LOGGER.warning("all %d crystals are of the same elements: they are split one by one", n)
    sizes = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(sizes))
    filled = np.concatenate([[0], np.cumsum(sizes[order])])
    chosen = int(np.abs(filled - val_fraction * n).argmin())
    if val_fraction > 0:
        chosen = max(chosen, 1)
    chosen = min(chosen, len(sizes) - 1)
    in_validation = np.isin(group, order[:chosen])
    return torch.from_numpy(np.flatnonzero(~in_validation)), torch.from_numpy(np.flatnonzero(in_validation))


def given_parts(dataset: CrystalDataset, how: str) -> tuple[Tensor, Tensor]:
    """Training and validation part that others have laid down.

    Args:
        dataset: the crystals.
        how: ``matbench:K``, with fold K of :func:`pyg_dim.data.matbench_folds` as validation part
            (``matbench:K:ROWS`` where the task had other rows than were read); or the path of a file written by
            :func:`~pyg_dim.data.save_index_sets` with sets named train and val.

    Returns:
        Rows of the training part and of the validation part, each in ascending order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither of them, rows that are not those of a Matbench task, or a file that does not fit the data
            set.
    """
    if how.startswith("matbench:"):
        fold, _, rows = how.removeprefix("matbench:").partition(":")
        if fold not in map(str, range(_MATBENCH_FOLDS)) or (rows and not rows.isdecimal()):
            raise ValueError(f"{how!r} is no split: say matbench:K with a fold K from 0 to {_MATBENCH_FOLDS - 1}")
        here = matbench_folds(dataset, int(rows) if rows else None) == int(fold)
        return (~here).nonzero()[:, 0], here.nonzero()[:, 0]
    if not how.endswith(".json"):
        raise ValueError(f"unknown split {how!r}; known: {', '.join(SPLIT_RULES)}, matbench:K, or a .json file")
    sets = load_index_sets(how, dataset)
    for name in ("train", "val"):
        if name not in sets:
            raise ValueError(f"{how} has no set named {name!r}; it has {', '.join(map(repr, sets)) or 'none'}")
    train, val = sets["train"].sort().values, sets["val"].sort().values
    if np.intersect1d(train.numpy(), val.numpy()).size:
        raise ValueError(f"{how}: the sets 'train' and 'val' share crystals")
    return train, val


def matbench_folds(dataset: CrystalDataset, num_rows: int | None = None) -> Tensor:
    """Official test fold of each crystal of a Matbench task of regression.

    For these, Matbench v0.1 takes scikit-learn's ``KFold(5, shuffle=True, random_state=18012019)`` over the rows of the
    task, so each crystal has to be known by its row: identifiers that are row numbers, as those of the published files,
    or a data set that holds all rows in their order. The folds of classification tasks are stratified by class; they
    are refused.

    Args:
        dataset: n crystals of the task; some may be left out, and labels of other sources may be there.
        num_rows: rows of the whole task; by default those that were read.

    Returns:
        [n] int64, folds from 0 to 4.

    Raises:
        ValueError: no Matbench task has that many rows, the rows of the crystals are not known, or the task is one of
            classification: one with as many rows, and a label of which all values are 0 or 1, and some 1.
    """
    from sklearn.model_selection import KFold

    total = dataset.report.num_read if num_rows is None else num_rows
    names = dataset.ids.to_pylist()
    if all(name.isdecimal() for name in names):
        rows = np.array([int(name) for name in names], dtype=np.int64)
    else:
        rows = np.arange(len(dataset))
    whole = len(dataset) == total or all(name.isdecimal() for name in names)
    if total not in MATBENCH_SIZES or not whole or (len(rows) and rows.max() >= total):
        sizes = ", ".join(map(str, MATBENCH_SIZES))
        raise ValueError(
            f"the folds of Matbench need the row of each crystal in a whole task ({sizes} rows): "
            f"{dataset.report.source} gave {dataset.report.num_read} rows, of which {len(dataset)} are here. "
            "Read the published file, whose identifiers are row numbers, and where rows were left out before say how "
            "many there were: matbench:K:ROWS"
        )
    classes = [name for name in dataset.labels if _is_class(dataset.target(name))]
    if total in _MATBENCH_CLASSES and classes:
        raise ValueError(
            f"{dataset.report.source}: the label {classes[0]!r} tells classes apart, and the official folds of "
            "classification tasks of Matbench are stratified, which is not done here. Give the folds as a .json file "
            "with the sets 'train' and 'val', or leave the label out if the task is one of regression"
        )
    fold = np.empty(total, dtype=np.int64)
    parts = KFold(_MATBENCH_FOLDS, shuffle=True, random_state=_MATBENCH_SEED).split(np.zeros((total, 1)))
    for number, (_, test) in enumerate(parts):
        fold[test] = number
    return torch.from_numpy(fold[rows])


def _is_class(values: Tensor) -> bool:
    known = values[values.isfinite()]
    # Not zero alone: a band gap of zero is that of a metal.
    return bool(((known == 0) | (known == 1)).all()) and bool((known == 1).any())


def draw_labels(dataset: CrystalDataset, name: str, n: int, seed: int = 0, among: Tensor | None = None) -> Tensor:
    """Draw the crystals whose label a study of few labels may see.

    Args:
        dataset: crystals.
        name: label.
        n: number of labels.
        seed: seed of the draw.
        among: rows to draw from, for example a training part; all by default.

    Returns:
        [n] int64, rows in ascending order; all have the label.

    Raises:
        ValueError: no such label, or fewer than n of them.
    """
    known = dataset.target(name).isfinite().cpu()
    rows = torch.arange(len(dataset)) if among is None else among
    rows = rows[known[rows]]
    if not 0 < n <= rows.numel():
        raise ValueError(f"{n} labels {name!r} asked for, {rows.numel()} available")
    return rows[torch.from_numpy(np.random.default_rng([seed, n]).permutation(rows.numel())[:n])].sort().values


def mask_labels(dataset: CrystalDataset, name: str, rows: Tensor) -> CrystalDataset:
    """The same crystals, one label known for some of them alone.

    Args:
        dataset: crystals.
        name: label.
        rows: rows that keep it, for example from :func:`draw_labels`.

    Returns:
        A data set that shares everything else with this one.

    Raises:
        ValueError: no such label.
    """
    values = dataset.target(name)
    return dataset.with_labels({name: torch.full_like(values, float("nan")).index_copy(0, rows, values[rows])})
