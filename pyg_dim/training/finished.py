"""What finished runs left in their folders, read back."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim import models
from pyg_dim.evaluate.architectures import count_parameters
from pyg_dim.evaluate.compare import SPEED, Run
from pyg_dim.evaluate.report import COLUMNS
from pyg_dim.evaluate.summary import probe_metrics
from pyg_dim.training.checkpoints import LAST, SECTION, load_encoder_state, read_checkpoint
from pyg_dim.training.options import TrainOptions

EVENTS = "events.out.tfevents.*"
SUMMARY = "summary.csv"
_CLOSE = 1e-5
"""Relative difference of two records of a loss; both are single precision numbers."""
_NUMBERS = COLUMNS[COLUMNS.index("train") :]
_EMPTY = {"scalars": 0, "images": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1, "audio": 1, "graph": 1}
"""How many events of a kind are kept in memory; 0 keeps all."""


def read_runs(folders: Sequence[str | Path]) -> tuple[list[Run], dict[str, str]]:
    """Read the finished runs in folders.

    Args:
        folders: Folders of runs, or folders that hold them at any depth.

    Returns:
        The runs in the order found, each once, and by name why others are left out.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: A file instead of a folder, or no finished run at all; the message names each and its reason.
    """
    left_out: dict[str, str] = {}
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.exists():
            raise FileNotFoundError(f"no folder {folder}: give folders of runs, or one that holds them (--logdir)")
        if not folder.is_dir():
            raise ValueError(f"{folder} is a file: give the folder of the run, {folder.parent}")
        inside = dict.fromkeys(_run_folders(folder))
        if not inside:
            left_out[str(folder)] = f"holds no run, which is a folder with {LAST}"
        found |= inside
    runs = []
    for path, name in _names(list(found)).items():
        try:
            runs.append(_read_run(path, name))
        except (ValueError, FileNotFoundError) as error:
            left_out[name] = str(error)
    if not runs:
        raise ValueError("no finished run: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))
    return runs, left_out


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders that a run has written to, also where links lead to them; each by its real path."""
    seen = set()
    for path, inside, files in os.walk(folder, followlinks=True):
        here = Path(path).resolve()
        if here in seen:
            inside.clear()
            continue
        seen.add(here)
        inside.sort()
        if LAST in files or any(Path(file).match(EVENTS) for file in files):
            yield here


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """As much of the end of each path as tells it from the others."""
    names = {}
    for path in paths:
        for parts in range(1, len(path.parts) + 1):
            end = path.parts[-parts:]
            if sum(other.parts[-parts:] == end for other in paths) == 1:
                break
        names[path] = "/".join(end)
    return names


def _read_run(path: Path, name: str) -> Run:
    if not (path / LAST).exists():
        raise ValueError(f"not finished: it has no {LAST}")
    checkpoint = read_checkpoint(path / LAST)
    about = checkpoint[SECTION]
    options = TrainOptions.from_dict(about["options"])
    epochs, last_step = _progress(checkpoint, path / LAST)
    if epochs < options.epochs:
        raise ValueError(
            f"not finished: {epochs} of {options.epochs} epochs; go on with pyg-dim train --resume {path / LAST}"
        )
    has_val = about["data"]["val"] > 0
    if has_val and not (path / SUMMARY).exists():
        raise ValueError(f"not finished: it has no {SUMMARY}; go on with pyg-dim train --resume {path / LAST}")
    scalars = _read_scalars(path, last_step)
    curves = _curves(scalars, epochs, path)
    table = _read_summary(path / SUMMARY) if has_val else pd.DataFrame(columns=list(COLUMNS))
    if has_val:
        _require_agreement(table, curves, sum(tag.startswith("probe/") for tag in scalars), path)
    encoder = models.build(about["model"], **about["encoder"])
    load_encoder_state(encoder, checkpoint, path / LAST)
    parameters, level_parameters = count_parameters(encoder)
    return Run(
        name=name,
        model=about["model"],
        objective="+".join(options.objectives),
        options=options.to_dict(),
        data=Path(about["data"]["source"]).name,
        fingerprint=about["data"]["fingerprint"],
        train=about["data"]["train"],
        epochs=epochs,
        has_val=has_val,
        parameters=parameters,
        level_parameters=level_parameters,
        curves=curves,
        probes=table[table["section"] == "probe"].reset_index(drop=True),
    )


def _progress(checkpoint: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Finished epochs and steps."""
    try:
        done = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        return done, int(checkpoint["global_step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: it has no state of the training loop") from error


def _read_scalars(path: Path, last_step: int) -> dict[str, dict[int, float]]:
    """Values by tag and step; where a resumed run computed a step again, the later value.

    Steps behind the last one are of epochs that were given up when the run was resumed from an earlier checkpoint.
    """
    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(path.glob(EVENTS)):
        events = EventAccumulator(str(file), size_guidance=_EMPTY, purge_orphaned_data=False)
        try:
            events.Reload()
            for tag in events.Tags()["scalars"]:
                points = {event.step: event.value for event in events.Scalars(tag) if event.step <= last_step}
                scalars.setdefault(tag, {}).update(points)
        except Exception as error:  # foreign bytes are met with errors of any type
            raise ValueError(f"{file} is damaged: it is no file of TensorBoard events") from error
    return scalars


def _curves(scalars: Mapping[str, Mapping[int, float]], epochs: int, path: Path) -> dict[str, list[float]]:
    """Values by tag and epoch."""
    ends = sorted(scalars.get("train/total", {}))
    if len(ends) > epochs:
        raise ValueError(
            f"the events in {path} are of {len(ends)} epochs, {LAST} of {epochs}: they are of several runs"
        )
    curves: dict[str, list[float]] = {}
    for tag, points in scalars.items():
        curve = [math.nan] * epochs
        for step in sorted(points):
            # What is measured again behind the last step belongs to the last epoch.
            curve[min(bisect_left(ends, step), epochs - 1)] = points[step]
        curves[tag] = curve
    for tag in (SPEED, "train/total"):
        known = int(np.isfinite(curves[tag]).sum()) if tag in curves else 0
        if known < epochs:
            raise ValueError(f"the events in {path} are damaged or incomplete: {tag} of {known} in {epochs} epochs")
    return curves


def _read_summary(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values={key: [""] for key in _NUMBERS})
        table = table.astype(dict.fromkeys(_NUMBERS, float))[list(COLUMNS)]
        probes = table["section"] == "probe"
        table["n"] = pd.to_numeric(table["n"]).astype("Int64")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged: it is no table of losses and probes") from error
    values = table.loc[probes, ["n", "wins", "losses"]]
    if not set(table["section"]) <= {"loss", "probe"} or values.isna().any(axis=None):
        raise ValueError(f"{path} is damaged: it is no table of losses and probes")
    return table


def _require_agreement(table: pd.DataFrame, curves: Mapping[str, Sequence[float]], probes: int, path: Path) -> None:
    """Check that the summary is whole, and of the last epoch."""
    losses = table.loc[(table["section"] == "loss") & table["val"].notna(), ["name", "val"]]
    for name, value in losses.itertuples(index=False, name=None):
        logged = curves.get(f"val/{name}", [math.nan])[-1]
        if not math.isclose(value, logged, rel_tol=_CLOSE, abs_tol=_CLOSE):
            raise ValueError(
                f"{path / SUMMARY} is of another epoch than the events: val/{name} is {value} and {logged}"
            )
    rows = len(probe_metrics(table))
    if losses.empty or rows < probes:
        raise ValueError(
            f"{path / SUMMARY} is damaged: it has {len(losses)} losses and {rows} of {probes} probe errors"
        )
