"""The commands ``pyg-dim probe``, ``pyg-dim transfer`` and ``pyg-dim reproduce``."""

from __future__ import annotations

import argparse
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from torch import Tensor

from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.data.splits import SPLIT_RULES, given_parts, split
from pyg_dim.evaluate.baselines import DESCRIPTORS
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.evaluate.regressors import AUTO, BLEND, DUMMY, LEAST_SQUARES, PROBES, RIDGE
from pyg_dim.experiments import probing, transferring
from pyg_dim.experiments.features import READOUT_NAMES, checkpoint_features, descriptor_features
from pyg_dim.experiments.formula_figures import FORMULA_FIGURES
from pyg_dim.experiments.formula_page import write_formula_tables
from pyg_dim.experiments.formula_sets import SETS, SMALL_SETS
from pyg_dim.experiments.formula_study import FormulaStudy
from pyg_dim.experiments.page import PROBE_LEGEND, TRANSFER_LEGEND, probe_text, transfer_text, write_tables
from pyg_dim.experiments.provenance import TOGETHER, checksum, keep_to
from pyg_dim.experiments.reproduce import FIGURES
from pyg_dim.experiments.scales import FORMULA_SCALES, SCALES
from pyg_dim.experiments.study import SplitName, Study
from pyg_dim.experiments.table import FitTable
from pyg_dim.experiments.tasks import Task, cross_task, fold_task
from pyg_dim.experiments.transferring import RANDOM, Start
from pyg_dim.objectives.supervised import HEADS, LABEL_LOSSES
from pyg_dim.training.checkpoints import LAST, SECTION, read_checkpoint
from pyg_dim.training.finetune import FineTuneOptions
from pyg_dim.training.hub import ADDRESS
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.pretrained import locate
from pyg_dim.training.setup import prepare_data
from pyg_dim.training.weights import WEIGHTS

_logger = logging.getLogger(__name__)

UNTRAINED = "untrained"
MATBENCH_FOLDS = "matbench"
TABLES = "tables"
FORMULA_TABLES = "rp-tables"
FORMULA_FOLDER = "roost"
"""Folder of the experiments without structures in that of the others."""
_ENCODERS = "checkpoints of runs, .safetensors files, names of those that come with the package, or hf://user/name"


def _files_can_fail(command: Callable[[Sequence[str], str], int]) -> Callable[[Sequence[str], str], int]:
    """Tell the user of a folder that cannot be written to, or a full disk, in words."""

    @wraps(command)
    def run(arguments: Sequence[str], prog: str) -> int:
        try:
            return command(arguments, prog)
        except (FileNotFoundError, BrokenPipeError):
            raise
        except OSError as error:
            where = error.filename or "a file"
            raise ValueError(
                f"cannot write or read {where}: {error.strerror or error}; choose another --out"
            ) from error

    return run


@_files_can_fail
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
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help=f"encoders: {_ENCODERS}")
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
    checkpoints = _checkpoints(chosen.checkpoints, DESCRIPTORS)
    task = _task(chosen, checkpoints)
    task.require_fitting(chosen.sizes)
    keep_to(out / "probes.json", {"target": task.target, "seed": task.seed}, _checksums(task, checkpoints))
    table = FitTable(out / "probes.csv", probing.KEYS, probing.VALUES)
    rows = task.rows
    features = {}
    # Only an encoder that was trained to tell fingerprints has a layer that does.
    before = [readout for readout in readouts if not readout.startswith("decoded")]
    for name, path in checkpoints.items():
        for readout, vectors in checkpoint_features(path, task.dataset, rows, readouts).items():
            features[f"{name} {readout}"] = vectors
        if UNTRAINED in baselines and before:
            for readout, vectors in checkpoint_features(path, task.dataset, rows, before, trained=False).items():
                features[f"{name} {UNTRAINED} {readout}"] = vectors
    for name in (name for name in baselines if name != UNTRAINED):
        cache = out / f"{Path(chosen.data).name.split('.')[0]}-{name}.parquet"
        features[name] = descriptor_features(name, task.dataset, rows, cache, chosen.workers)
    probing.probe_features(
        task.name, [task], {task.name: features}, dict.fromkeys(features, probes), table, chosen.sizes, chosen.draws,
        chosen.workers,
    )  # fmt: skip
    _show(table, out / "probes.md", probe_text, PROBE_LEGEND)
    return 0


@_files_can_fail
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
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help=f"encoders to start from; all are compared with the row {RANDOM}, an encoder built like the first one, "
        f"with new random parameters. Encoders: {_ENCODERS}",
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
    checkpoints = _checkpoints(chosen.checkpoints, (RANDOM,))
    starts = {RANDOM: Start(next(iter(checkpoints.values())), False, options)}
    starts |= {name: Start(path, True, options) for name, path in checkpoints.items()}
    task = _task(chosen, checkpoints)
    task.require_fitting(chosen.sizes)
    settings = {"target": task.target, "seed": task.seed, "options": asdict(options)}
    keep_to(out / "transfer.json", settings, _checksums(task, checkpoints))
    table = FitTable(out / "transfer.csv", transferring.KEYS, transferring.VALUES)
    transferring.fine_tune_starts(
        task.name, [task], {task.name: starts}, table, chosen.sizes, chosen.draws, chosen.workers
    )
    _show(table, out / "transfer.md", transfer_text, TRANSFER_LEGEND)
    return 0


@_files_can_fail
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
        "Compute a figure of Moran et al., Digital Discovery 2025, 4, 790, or (rp-...) of Huang et al., J. Chem. Inf. "
        "Model. 2024, 64, 627: pre-train, fit, draw. What is there already is not computed again, so a command that "
        "was stopped goes on where it was.",
    )
    parser.add_argument(
        "figure",
        choices=[*FIGURES, TABLES, *FORMULA_FIGURES, FORMULA_TABLES],
        help=f"the figure, or {TABLES} or {FORMULA_TABLES} for all tables of what was computed",
    )
    parser.add_argument("--scale", choices=SCALES, default="small", help="how much is computed")
    parser.add_argument("--out", default="results", metavar="FOLDER", help="where runs, tables and pictures go")
    parser.add_argument("--workers", type=_whole(1), default=1, help="processes of probes and fine-tuning")
    parser.add_argument("--page", metavar="FILE.md", help="tables: also fill the marked places of this page")
    crystals = parser.add_argument_group("with structures")
    crystals.add_argument("--data", help="crystals with formation_energy_per_atom and band_gap (mp36k)")
    crystals.add_argument("--phonons", help="matbench_phonons as distributed")
    crystals.add_argument(
        "--unlabelled", metavar="FILE", help="fig8, fig13: more crystals to pre-train on, as one more encoder"
    )
    crystals.add_argument(
        "--split",
        choices=get_args(SplitName),
        default="random",
        help="of the test: random, as in the paper, or formula: none of its formulas is trained on",
    )
    formulas = parser.add_argument_group("without structures (rp-...)")
    formulas.add_argument("--compositions", metavar="FOLDER", help="the sets, as matbench_....csv; see --sets")
    formulas.add_argument("--pool", metavar="FILE", help="formulas to pre-train on, CSV")
    formulas.add_argument("--structures", metavar="FILE", help="crystals that the teacher of MML learns from")
    formulas.add_argument("--sets", default=",".join(SMALL_SETS), help=f"out of {', '.join(SETS)}")
    formulas.add_argument(
        "--without-test-formulas", action="store_true", help="pre-train without the formulas of the sets"
    )
    formulas.add_argument(
        "--elements", default="magpie", help="what Roost is told of elements: learned, one_hot, magpie or a file"
    )
    formulas.add_argument("--teacher", metavar="CKPT", help=f"teacher of MML instead of one trained here: {_ENCODERS}")
    chosen = parser.parse_args(arguments)
    is_formula = chosen.figure in (*FORMULA_FIGURES, FORMULA_TABLES)
    for name in ("compositions", "pool", "structures") if is_formula else ("data", "phonons"):
        if getattr(chosen, name) is None:
            parser.error(f"{chosen.figure} needs --{name}")
    page = Path(chosen.page) if chosen.page else None
    if is_formula:
        _reproduce_formulas(chosen, page)
        return 0
    study = Study(
        data=chosen.data, phonons=chosen.phonons, directory=_folder(chosen.out), scale=SCALES[chosen.scale],
        split=chosen.split, unlabelled=chosen.unlabelled, workers=chosen.workers,
    )  # fmt: skip
    study.keep_to_settings()
    if chosen.figure == TABLES:
        _logger.info("saved in %s", write_tables(study, page))
        return 0
    FIGURES[chosen.figure](study)
    _logger.info("saved in %s", study.directory)
    return 0


def _reproduce_formulas(chosen: argparse.Namespace, page: Path | None) -> None:
    study = FormulaStudy(
        compositions=chosen.compositions, pool=chosen.pool, structures=chosen.structures,
        sets=tuple(_listed(chosen.sets, tuple(SETS), "--sets")), scale=FORMULA_SCALES[chosen.scale],
        elements=chosen.elements, teacher=chosen.teacher and locate(chosen.teacher),
        directory=_folder(Path(chosen.out) / FORMULA_FOLDER),
        split="unseen" if chosen.without_test_formulas else "all", workers=chosen.workers,
    )  # fmt: skip
    study.keep_to_settings()
    if chosen.figure != FORMULA_TABLES:
        FORMULA_FIGURES[chosen.figure](study)
    _logger.info("saved in %s", write_formula_tables(study, page))


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
    "loss": f"loss on the labels: {', '.join(LABEL_LOSSES)}",
    "head": f"head: {', '.join(HEADS)} (one hidden layer, or two residual layers as Roost)",
    "head_channels": "width of the last hidden layer of the head",
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
    parser.add_argument("--sizes", type=_sizes, default=",".join(map(str, probing.SIZES)), help="numbers of labels")
    parser.add_argument("--draws", type=_whole(1), default=20, help="label subsets, or seeds, for each number")
    parser.add_argument(
        "--seed", type=_whole(0), help="of the split and the draws, by default that of the first checkpoint"
    )
    parser.add_argument("--workers", type=_whole(1), default=1, help="processes")
    parser.add_argument("--out", default="results", metavar="FOLDER", help="where tables go; a stopped study goes on")


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    read.__name__ = "whole number"  # argparse names it where the text is none
    return read


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(_whole(2), text.split(",")))


def _task(chosen: argparse.Namespace, checkpoints: Mapping[str, Path]) -> Task:
    first, path = next(iter(checkpoints.items()))
    run = _options(path)
    seed = run.seed if chosen.seed is None else chosen.seed
    if chosen.split is None and chosen.val_fraction is None:
        if _has_lost_parts(run):
            raise ValueError(
                f"{first} was trained on the parts of {run.split}, which is not here: say with --split which crystals "
                "are the test"
            )
        # The parts of the run itself: with its --limit, and without the crystals that it left out.
        data = prepare_data(_for_parts(run, chosen.data))
        dataset, train, test = data.dataset, data.train, data.val
    else:
        dataset = load_dataset(chosen.data, max_sites=run.max_sites, oxidation=run.oxidation)
        rule, share = chosen.split or run.split, chosen.val_fraction
        if rule == MATBENCH_FOLDS:
            return cross_task(chosen.target, dataset, chosen.target, "matbench")
        share = run.val_fraction if share is None else share
        train, test = split(dataset, share, seed, rule) if rule in SPLIT_RULES else given_parts(dataset, rule)  # type: ignore[arg-type]
    dataset.target(chosen.target)
    if not test.numel():
        raise ValueError("the test part is empty: give --val-fraction or another --split")
    for name, path in list(checkpoints.items())[1:]:
        _require_unseen(name, _options(path), dataset, test)
    return fold_task(chosen.target, dataset, chosen.target, train, test, seed=seed)


def _for_parts(run: TrainOptions, data: str) -> TrainOptions:
    """The options that decide on the parts of a run, on other data perhaps; nothing is computed for an objective."""
    labelled = run.objectives == ["supervised"]
    changes: dict[str, Any] = {}
    if not labelled:
        changes = {"objective": "deep_infomax", "target": None, "objective_weights": None}
    if Path(run.data).name != Path(data).name:
        changes["limit"] = None  # it was of the other crystals
    return replace(run, data=data, init=None, resume=None, readout="global", **changes)


def _require_unseen(name: str, run: TrainOptions, dataset: CrystalDataset, test: Tensor) -> None:
    """Refuse a further checkpoint that was trained on crystals of the test, where it was trained on the same file."""
    if Path(run.data).name != Path(dataset.report.source).name or not Path(run.data).exists():
        return
    if _has_lost_parts(run):
        _logger.warning(
            "%s was trained on the parts of %s, which is not here: crystals of the test may be among them",
            name,
            run.split,
        )
        return
    parts = prepare_data(_for_parts(run, run.data))
    trained = parts.dataset.ids.take(pa.array(parts.train.numpy()))
    seen = int(pc.sum(pc.is_in(dataset.ids.take(pa.array(test.numpy())), trained)).as_py())
    if seen:
        raise ValueError(
            f"{name} was trained on {seen} of the {test.numel()} crystals of the test: train all on the same parts "
            "(--split of train with a file), or give a --split here"
        )


def _has_lost_parts(run: TrainOptions) -> bool:
    """Whether a file had the parts of a run and is not at hand; weights files tell its name, not its place."""
    return run.split.endswith(".json") and not Path(run.split).exists()


def _options(checkpoint: Path) -> TrainOptions:
    return TrainOptions.from_dict(read_checkpoint(checkpoint)[SECTION]["options"])


def _checkpoints(paths: Sequence[str], taken: Sequence[str]) -> dict[str, Path]:
    """Files of encoders by name.

    That of a checkpoint is the folder of its run, with the file where it is not the last state; that of a weights file
    is its own; that on a hub is the repository.
    """
    found: dict[str, Path] = {}
    for text in paths:
        path = locate(text)
        read_checkpoint(path)
        if text.startswith(ADDRESS):
            name = text.removeprefix(ADDRESS)
        elif path.suffix == WEIGHTS:
            name = path.stem
        else:
            name = path.resolve().parent.name + ("" if path.name == LAST else f" {path.stem}")
        if name in found or name in taken:
            what = path if path.suffix == WEIGHTS else f"the folder of {path}"
            raise ValueError(f"two of what is compared would be called {name!r}: rename {what}")
        found[name] = path
    return found


def _checksums(task: Task, checkpoints: Mapping[str, Path]) -> dict[str, str]:
    """What the rows of a table depend on beside their keys and the settings that can be read, in words that tell it."""
    data, rows = task.dataset, [part for fold in task.folds for part in fold]
    contents = {
        "crystals": [data.z, data.ptr, *((data.pos, data.cell) if data.amount is None else (data.amount,))],
        "labels": [data.target(task.target)],
        "parts (which crystals are the test)": rows,
    }
    sums = {name: f"{_crc(tensors):08x}" for name, tensors in contents.items()}
    whole = f"{_crc([tensor for tensors in contents.values() for tensor in tensors]):08x}"
    of_checkpoints = {f"checkpoint {name}": checksum(path) for name, path in checkpoints.items()}
    return of_checkpoints | sums | {TOGETHER: whole}


def _crc(tensors: Sequence[Tensor]) -> int:
    found = 0
    for values in tensors:
        found = zlib.crc32(values.contiguous().numpy().data, found)
    return found


def _listed(text: str, known: Sequence[str], flag: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names and flag != "--baselines":
        raise ValueError(f"{flag} names nothing; known: {', '.join(known)}")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{flag} {','.join(unknown)}: unknown; known: {', '.join(known)}")
    return names


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _show(table: FitTable, path: Path, text: Callable[[pd.DataFrame], Iterator[str]], legend: str) -> None:
    lines = "\n\n".join([*text(table.read()), legend])
    replace_file(path, lines + "\n")
    Console().print(lines, markup=False, highlight=False, soft_wrap=True)
    _logger.info("saved in %s and %s", table.path, path)
