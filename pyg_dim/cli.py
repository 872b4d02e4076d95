"""The pyg-dim command."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from tqdm import tqdm

from pyg_dim import __version__
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.importing import import_crystals, show_report
from pyg_dim.data.primitive import SYMPREC
from pyg_dim.data.reading import open_sources
from pyg_dim.data.sources.registry import FORMATS
from pyg_dim.data.supercell import MAX_SITES
from pyg_dim.embedding import embed_command, export_command
from pyg_dim.evaluate.architectures import print_models
from pyg_dim.evaluate.compare import compare
from pyg_dim.evaluate.compare_figure import write_figure
from pyg_dim.experiments.commands import probe_command, reproduce_command, transfer_command
from pyg_dim.models import MODELS
from pyg_dim.native.allocator import keep_freed_memory
from pyg_dim.prediction import predict_command
from pyg_dim.training.callbacks import Interrupted
from pyg_dim.training.checkpoints import SECTION, crystal_options, read_checkpoint, require_model, require_plain_encoder
from pyg_dim.training.finished import read_runs
from pyg_dim.training.options import TrainOptions, descriptions, objective_fault
from pyg_dim.training.run import train

_logger = logging.getLogger(__name__)

INTERRUPTED = 128
"""Exit status of a run that a signal stopped, plus the number of the signal: 130 for Ctrl-C."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        arguments: command line without the program's name; that of the process by default.
        prog: how the subcommand is called in messages; ``pyg-dim <subcommand>`` by default.

    Returns:
        Exit status: 0, 1 for an error that the user can mend, 130 after Ctrl-C. Wrong options exit with 2.
    """
    parser = argparse.ArgumentParser("pyg-dim", description="Deep InfoMax pre-training for crystals.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "command",
        choices=COMMANDS,
        help="; ".join(f"{name}: {text}" for name, (_, text) in COMMANDS.items()) + "; each has its own --help",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    command, _ = COMMANDS[chosen.command]
    # Processes of a training do the same; those of other commands that a launcher starts have work of their own.
    speaks = chosen.command != "train" or rank_zero_only.rank == 0  # type: ignore[attr-defined]
    _show_log(speaks)
    complain = _complain if speaks else _be_silent
    keep_freed_memory()
    try:
        return command(chosen.arguments, prog or f"pyg-dim {chosen.command}")
    except Interrupted as stop:
        _show_interruption(stop, prog or "pyg-dim train")
        return INTERRUPTED + stop.signum
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED + signal.SIGINT
    except MisconfigurationException as error:
        # Lightning's word for devices that are not there.
        complain(f"error: {error}")
        return 1
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if not _is_ours(error):
            raise
        complain(f"error: {error}")
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        # What no command has a better word for: a source or a folder that may not be read.
        complain(f"error: cannot read or write {error.filename or 'a file'}: {error.strerror or error}")
        return 1


def train_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim train``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    train(parse_train(arguments, prog))
    return 0


def import_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim import``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    parser = _import_parser(prog)
    chosen = parser.parse_args(arguments)
    units = {}
    for pair in chosen.unit:
        name, separator, unit = pair.partition("=")
        if not (name and separator and unit):
            parser.error(f"argument --unit: {pair!r} is not NAME=UNIT")
        units[name] = unit
    options = ImportOptions(chosen.max_sites, not chosen.keep_cells, chosen.symprec)
    source = open_sources(chosen.source, chosen.id, chosen.labels, chosen.labels_id, units)
    report = import_crystals(source, chosen.out, options, chosen.workers, chosen.resume, chosen.overwrite)
    show_report(report, chosen.out)
    return 0


def compare_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim compare``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog,
        description="Compare finished runs: one table on the screen, in compare.csv and compare.md, and a picture, "
        "compare.png.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folder of a run, or one that holds runs at any depth")
    parser.add_argument("--out", metavar="FOLDER", help="where to write, by default the first RUNS")
    chosen = parser.parse_args(arguments)
    runs, left_out = read_runs(chosen.runs)
    directory = Path(chosen.out or chosen.runs[0])
    try:
        compare(runs, left_out, directory, Console())
        write_figure(runs, directory)
    except OSError as error:
        raise ValueError(f"cannot write to {directory}: {error.strerror or error}; choose --out") from error
    _logger.info("saved in %s: compare.csv, compare.md, compare.png", directory)
    return 0


def models_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim models``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    argparse.ArgumentParser(prog, description="List the encoders at their defaults.").parse_args(arguments)
    print_models(MODELS, Console())
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str], str], int], str]] = {
    "train": (train_command, "train an encoder, without labels or on labels"),
    "import": (import_command, "read crystals of any format, check them and write one Parquet file"),
    "embed": (embed_command, "turn crystals into the vectors of a trained encoder"),
    "predict": (predict_command, "predict labels by an encoder that was trained on labels"),
    "export": (export_command, "write the encoder of a checkpoint as a file to hand on"),
    "compare": (compare_command, "compare finished runs in a table and a picture"),
    "models": (models_command, "list the encoders"),
    "probe": (probe_command, "fit small models on frozen vectors and descriptors, on few labels"),
    "transfer": (transfer_command, "fine-tune encoders on few labels from several starts"),
    "reproduce": (reproduce_command, "compute the figures and tables of the paper"),
}
"""Subcommands: what runs, and what it is for."""


def _num_cores() -> int:
    # Not every system can say which of its cores this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=f"Read crystals, check them and write one file. Read: {FORMATS}.",
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="file, folder, quoted pattern or Matbench task")
    parser.add_argument("out", metavar="OUT.parquet", help="file to write; the report becomes OUT.report.json")
    parser.add_argument("--labels", metavar="FILE.csv", help="labels, joined by identifier (of a file: its name)")
    parser.add_argument("--labels-id", metavar="COLUMN", help="identifiers in the file of labels, by default the first")
    parser.add_argument(
        "--id", metavar="COLUMN", help="identifiers in tables, by default immutable_id, material_id or id"
    )
    parser.add_argument("--unit", metavar="NAME=UNIT", action="append", default=[], help="unit of a label; repeatable")
    parser.add_argument("--max-sites", type=int, default=MAX_SITES, help="sites of the largest primitive cell kept")
    parser.add_argument("--keep-cells", action="store_true", help="do not reduce cells to primitive ones")
    parser.add_argument("--symprec", type=float, default=SYMPREC, help="how exactly a cell must repeat itself, in Å")
    parser.add_argument("--workers", type=int, default=_num_cores(), help="processes")
    parser.add_argument("--resume", action="store_true", help="go on with an import that was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the file, discard parts of a stopped import")
    return parser


def parse_train(arguments: Sequence[str], prog: str = "pyg-dim train") -> TrainOptions:
    """Read the options of a run from flags, a YAML file and a checkpoint, in this order of weight.

    A checkpoint to resume gives all options. An encoder to start from (``--init``) gives its architecture, its options
    and how it saw crystals.

    Args:
        arguments: flags.
        prog: name of the program in messages.

    Returns:
        The options.

    Raises:
        SystemExit: after ``--help`` and ``--print-config`` (0), or for a wrong option (2).
        FileNotFoundError: no such checkpoint.
        ValueError: an option out of range, or a checkpoint of another architecture.
    """
    first = _look_ahead(arguments)
    saved: dict[str, Any] = {}
    source = first["resume"] or first["init"]
    if source is not None:
        checkpoint = read_checkpoint(source)
        if first["model"] is not None:
            require_model(first["model"], checkpoint, source)
        require_plain_encoder(checkpoint, source)
        about = checkpoint[SECTION]
        saved = about["options"]
        if first["resume"] is None:
            max_sites, oxidation = crystal_options(checkpoint, source)
            saved = {
                "model": about["model"],
                "encoder": about["encoder"],
                "max_sites": max_sites,
                "oxidation": oxidation,
            }
    model = first["model"] or saved.get("model") or TrainOptions.model
    parser = _train_parser(model, prog)
    if saved:
        known = _known(parser, saved)
        parser.set_defaults(known)
        if lost := [name for name in saved["encoder"] if f"encoder.{name}" not in known]:
            _logger.warning("%s has options that %s does not have here: %s", source, model, ", ".join(lost))
    chosen = parser.parse_args(list(arguments))
    if fault := objective_fault(chosen.objective):
        parser.error(f"argument --objective: {fault}")
    encoder = chosen.pop("encoder", Namespace())
    values = {entry.name: chosen[entry.name] for entry in fields(TrainOptions) if entry.name != "encoder"}
    return TrainOptions(**values, encoder=_plain(encoder))


def _look_ahead(arguments: Sequence[str]) -> dict[str, str | None]:
    """The model and the checkpoints: they decide which flags there are and what their defaults are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names = ("model", "resume", "init", "config")
    for name in names:
        parser.add_argument(f"--{name}")
    try:
        found = vars(parser.parse_known_args(list(arguments))[0])
    except argparse.ArgumentError:
        found = dict.fromkeys(names)  # a flag without its value; the real parser says so
    file = found.pop("config")
    if file is not None and Path(file).is_file():
        try:
            text = Path(file).read_text()
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
                # A few lines of them can stand for gigabytes.
                raise ValueError(f"{file} has references (*name), which options do not need: write the values out")
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            values = None  # the real parser names the file and the fault
        if isinstance(values, dict):
            # What is no text has no meaning here; the real parser says so.
            texts = {name: value for name, value in values.items() if isinstance(value, str)}
            found = {name: value if value is not None else texts.get(name) for name, value in found.items()}
    return found


_METAVARS = {
    "objective": "NAME+...",
    "objective_weights": "WEIGHT,...",
    "target": "COLUMN,...",
    "kinds": "KIND,...",
    "fingerprints": "FINGERPRINT,...",
}


def _train_parser(model: str, prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        # Messages send to this with --help behind it, and each model has options of its own.
        prog=f"{prog} --model {model}" if model in MODELS else prog,
        usage=f"{prog} [options]",
        description="Train an encoder of crystals. Every flag is a key of a YAML file too (--config).",
        print_config="--print-config",
        # The start of a flag that this model does not have may be the start of one that it has.
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with options; flags after it win")
    defaults = {entry.name: entry.default for entry in fields(TrainOptions)}
    for name, (kind, text) in descriptions().items():
        flag, default = f"--{name.replace('_', '-')}", defaults[name]
        if name == "encoder":
            continue
        if name == "model":
            parser.add_argument(flag, choices=sorted(MODELS), default=default, help=text)
        elif kind is bool:
            parser.add_argument(flag, action=ActionYesNo(no_prefix="no-"), default=default, help=text)
        else:
            parser.add_argument(flag, type=kind, default=default, help=text, metavar=_METAVARS.get(name))
    if model in MODELS:
        parser.add_class_arguments(MODELS[model], "encoder")
    return parser


def _known(parser: ArgumentParser, saved: dict[str, Any]) -> dict[str, Any]:
    """Saved options under the names of the parser; what this version does not have is left out."""
    flat = {name: value for name, value in saved.items() if name != "encoder"}
    flat |= {f"encoder.{name}": value for name, value in saved["encoder"].items()}
    flat |= {"resume": None, "init": None}
    destinations = {action.dest for action in parser._actions}
    return {name: value for name, value in flat.items() if name in destinations}


def _plain(values: Namespace) -> dict[str, Any]:
    # A checkpoint is read with weights_only, where lists are welcome; tuples come from defaults.
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(values).items()}


class _LogHandler(logging.Handler):
    """Write records above a progress bar, if one is shown, and as plain lines otherwise."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        tqdm.write(text, file=sys.stdout)


def _show_log(speaks: bool) -> None:
    """Show what the package says, if this process is to speak; and of Lightning only what matters."""
    package = logging.getLogger("pyg_dim")
    if not any(isinstance(handler, _LogHandler) for handler in package.handlers):
        package.addHandler(_LogHandler())
    package.propagate = False
    package.setLevel(logging.INFO if speaks else logging.CRITICAL)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@rank_zero_only
def _show_interruption(stop: Interrupted, prog: str) -> None:
    again = f"resume with: {prog} --resume {shlex.quote(str(stop.checkpoint))}" if stop.checkpoint else "start it anew"
    print(f"\n{stop}\n{again}")


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _be_silent(text: str) -> None:
    """Another process says it."""


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of this package, as a message to the user, and not below it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "pyg_dim"
