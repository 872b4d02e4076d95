"""The commands ``pyg-dim probe``, ``pyg-dim transfer`` and ``pyg-dim reproduce``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pandas as pd
from rich.console import Console

from pyg_dim.data import load_dataset
from pyg_dim.data.splits import SPLIT_RULES, given_parts, split
from pyg_dim.evaluate.baselines import DESCRIPTORS
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.evaluate.regressors import AUTO, BLEND, DUMMY, LEAST_SQUARES, PROBES, RIDGE
from pyg_dim.experiments import probing, transferring
from pyg_dim.experiments.features import READOUT_NAMES, checkpoint_features, descriptor_features
from pyg_dim.experiments.page import probe_text, transfer_text, write_tables
from pyg_dim.experiments.reproduce import FIGURES
from pyg_dim.experiments.scales import SCALES
from pyg_dim.experiments.study import SplitName, Study
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task, cross_task, fold_task
from pyg_dim.experiments.transferring import RANDOM, Start
from pyg_dim.training.checkpoints import SECTION, read_checkpoint
from pyg_dim.training.finetune import FineTuneOptions

_logger = logging.getLogger(__name__)

UNTRAINED = "untrained"
MATBENCH_FOLDS = "matbench"
TABLES = "tables"


def probe_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim probe``.

    Args:
        arguments: Flags.
        prog: How the command is called in messages.

    Returns:
        Exit status.
    """
    parser = _parser(
        prog,
        "Fit small models on the frozen vectors of encoders and on descriptors, on the same few labels, and measure "
        "them on the whole test part.",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help="checkpoints of runs")
    _add_task(parser)
    parser.add_argument("--readouts", default="global,full", help=f"of the encoders: {', '.join(READOUT_NAMES)}")
    parser.add_argument(
        "--baselines",
        default=f"{UNTRAINED},magpie",
        help=f"what they are compared with: {UNTRAINED} (each encoder before training), {', '.join(DESCRIPTORS)}",
    )
    parser.add_argument(
        "--probes", default=",".join((DUMMY, LEAST_SQUARES, RIDGE, AUTO, BLEND)), help=f"out of {', '.join(PROBES)}"
    )
    chosen = parser.parse_args(arguments)
    probes = _listed(chosen.probes, PROBES, "--probes")
    readouts = _listed(chosen.readouts, READOUT_NAMES, "--readouts")
    baselines = _listed(chosen.baselines, (UNTRAINED, *DESCRIPTORS), "--baselines")
    out = _folder(chosen.out)
    task = _task(chosen)
    table = FitTable(out / "probes.csv", probing.KEYS, probing.VALUES)
    rows = task.rows
    features = {}
    for path in map(Path, chosen.checkpoints):
        name = _name(path)
        for readout, vectors in checkpoint_features(path, task.dataset, rows, readouts).items():
            features[f"{name} {readout}"] = vectors
        if UNTRAINED in baselines:
            for readout, vectors in checkpoint_features(path, task.dataset, rows, readouts, trained=False).items():
                features[f"{name} {UNTRAINED} {readout}"] = vectors
    for name in (name for name in baselines if name != UNTRAINED):
        cache = out / f"{Path(chosen.data).name.split('.')[0]}-{name}.parquet"
        features[name] = descriptor_features(name, task.dataset, rows, cache, chosen.workers)
    probing.probe_features(
        task.name, [task], {task.name: features}, dict.fromkeys(features, probes), table, chosen.sizes, chosen.draws,
        chosen.workers,
    )  # fmt: skip
    _show(table, out / "probes.md", probe_text)
    return 0


def transfer_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim transfer``.

    Args:
        arguments: Flags.
        prog: How the command is called in messages.

    Returns:
        Exit status.
    """
    parser = _parser(
        prog,
        "Fine-tune encoders on few labels, from new parameters and from checkpoints, with the same labels and seeds.",
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CKPT", help="starts; the first one tells the shape of random"
    )
    _add_task(parser)
    defaults = FineTuneOptions()
    for entry in fields(FineTuneOptions):
        flag, value = f"--{entry.name.replace('_', '-')}", getattr(defaults, entry.name)
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true", help=_HELP[entry.name])
        else:
            parser.add_argument(flag, type=type(value), default=value, help=_HELP[entry.name])
    chosen = parser.parse_args(arguments)
    options = FineTuneOptions(**{entry.name: getattr(chosen, entry.name) for entry in fields(FineTuneOptions)})
    out = _folder(chosen.out)
    starts = {RANDOM: Start(Path(chosen.checkpoints[0]), False, options)}
    starts |= {_name(path): Start(path, True, options) for path in map(Path, chosen.checkpoints)}
    task = _task(chosen)
    table = FitTable(out / "transfer.csv", transferring.KEYS, transferring.VALUES)
    transferring.fine_tune_starts(
        task.name, [task], {task.name: starts}, table, chosen.sizes, chosen.draws, chosen.workers
    )
    _show(table, out / "transfer.md", transfer_text)
    return 0


def reproduce_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim reproduce``.

    Args:
        arguments: Flags.
        prog: How the command is called in messages.

    Returns:
        Exit status.
    """
    parser = _parser(
        prog,
        "Compute a figure of Moran et al., Digital Discovery 2025, 4, 790: pre-train, fit, draw. What is there already "
        "is not computed again, so a command that was stopped goes on where it was.",
    )
    parser.add_argument(
        "figure", choices=[*FIGURES, TABLES], help=f"the figure, or {TABLES} for all tables of what was computed"
    )
    parser.add_argument("--data", required=True, help="crystals with formation_energy_per_atom and band_gap (mp36k)")
    parser.add_argument("--phonons", required=True, help="matbench_phonons as distributed")
    parser.add_argument("--scale", choices=SCALES, default="small", help="how much is computed")
    parser.add_argument(
        "--split",
        choices=get_args(SplitName),
        default="random",
        help="of the test: random, as in the paper, or formula: none of its formulas is trained on",
    )
    parser.add_argument("--out", default="results", metavar="FOLDER", help="where runs, tables and pictures go")
    parser.add_argument("--workers", type=int, default=1, help="processes of probes and fine-tuning")
    parser.add_argument("--page", metavar="FILE.md", help=f"{TABLES}: also fill the marked places of this page")
    chosen = parser.parse_args(arguments)
    study = Study(chosen.data, chosen.phonons, _folder(chosen.out), SCALES[chosen.scale], chosen.split, chosen.workers)
    if chosen.figure == TABLES:
        _logger.info("saved in %s", write_tables(study, Path(chosen.page) if chosen.page else None))
        return 0
    FIGURES[chosen.figure](study)
    _logger.info("saved in %s", study.directory)
    return 0


_HELP = {
    "epochs": "passes over the labels, at most",
    "patience": "epochs without a lower hold-out error after which it stops",
    "holdout": "share of the labels that is held out for early stopping",
    "batch_sites": "sites of a batch",
    "lr": "learning rate of the head",
    "encoder_lr": "learning rate of the encoder",
    "weight_decay": "weight decay of both",
    "frozen_epochs": "epochs in which the head learns alone, before the encoder is unfrozen",
    "dim_weight": "weight of the Deep InfoMax loss that is kept on at first; 0 for none",
    "dim_decay": "factor of that weight from one epoch to the next",
    "readout": "what the head sees: global or full",
    "head_channels": "width of the hidden layer of the head",
    "log_target": "learn the logarithm of the label",
}


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="crystals with the label, as --data of train")
    parser.add_argument("--target", required=True, help="label column")
    parser.add_argument(
        "--split",
        help=f"which crystals are the test: a rule ({', '.join(SPLIT_RULES)}), matbench:K or a .json file, whose "
        f"validation part it is; {MATBENCH_FOLDS} for the five official folds in turn. By default that of the "
        "first checkpoint, whose validation part was not trained on",
    )
    parser.add_argument("--val-fraction", type=float, help="share of the test, by default that of the first checkpoint")
    parser.add_argument("--sizes", type=_sizes, default=probing.SIZES, help="numbers of labels")
    parser.add_argument("--draws", type=int, default=20, help="label subsets, or seeds, for each number")
    parser.add_argument("--seed", type=int, help="of the split and the draws, by default that of the first checkpoint")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", default="results", metavar="FOLDER", help="where tables go; a stopped study goes on")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _task(chosen: argparse.Namespace) -> Task:
    run = read_checkpoint(chosen.checkpoints[0])[SECTION]["options"]
    dataset = load_dataset(chosen.data, max_sites=run["max_sites"], oxidation=run["oxidation"])
    seed = run["seed"] if chosen.seed is None else chosen.seed
    rule = run["split"] if chosen.split is None else chosen.split
    share = run["val_fraction"] if chosen.val_fraction is None else chosen.val_fraction
    dataset.target(chosen.target)
    if rule == MATBENCH_FOLDS:
        return cross_task(chosen.target, dataset, chosen.target, "matbench")
    train, test = split(dataset, share, seed, rule) if rule in SPLIT_RULES else given_parts(dataset, rule)
    if not test.numel():
        raise ValueError("the test part is empty: give --val-fraction or another --split")
    return fold_task(chosen.target, dataset, chosen.target, train, test, seed=seed)


def _name(path: Path) -> str:
    """The folder of a run names it; its file does where that is not the last state."""
    return path.parent.name or path.stem


def _listed(text: str, known: Sequence[str], flag: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{flag} {','.join(unknown)}: unknown; known: {', '.join(known)}")
    return names


def _folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}; choose --out") from error
    return folder


def _show(table: FitTable, path: Path, text: Callable[[pd.DataFrame], Iterator[str]]) -> None:
    lines = "\n\n".join(text(table.read()))
    replace_file(path, lines + "\n")
    Console().print(lines, markup=False, highlight=False, soft_wrap=True)
    _logger.info("saved in %s and %s", table.path, path)
