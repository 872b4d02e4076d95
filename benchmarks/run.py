"""Run benchmarks by name; write their numbers as JSON and the tables of the documentation from them.

``python benchmarks/run.py --list`` says what there is and which options each takes; ``--render`` makes the tables and
pictures of the documentation again from the JSON that is kept, without running anything. Several benchmarks, or
``all``, run one after the other in processes of their own, so that none inherits threads, memory or compiled code of
another.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import data_size
import encoders
import few_labels
import loading
import processes
import render
import results
import scripts
import sitenet_speed
import torch
from programs import OURS, PUBLISHED

from pyg_dim.models import MODELS

BENCHMARKS: Final[dict[str, Callable[..., results.Measured]]] = {
    "step": sitenet_speed.step,
    "embedding": sitenet_speed.embedding,
    "supercell": sitenet_speed.supercell,
    "batch_size": sitenet_speed.batch_size,
    "data_size": data_size.data_size,
    "processes": processes.processes,
    "models": encoders.models,
    "loader": loading.loader,
    "few_labels": few_labels.few_labels,
    "data_layer": scripts.data_layer,
    "import_cif": scripts.import_cif,
    "dimpool": scripts.dimpool,
    "joint": scripts.joint,
    "own_model": scripts.own_model,
}
"""Benchmarks by name; the arguments of the function are the options of the command."""

HELP: Final = {
    "data": "crystals, as for train.py",
    "phonons": "crystals of matbench_phonons, as for train.py",
    "device": "cpu, or cuda",
    "seed": "of parameters, order, false samples and noise",
    "rounds": "timed rounds, in each of which every variant has a turn",
    "batch_sites": "sites of a batch",
    "supercell_sites": "sites of a supercell, at most",
    "variants": "programs to compare; the first is the reference",
    "variant": "the one of ours that is timed",
    "sizes": "sizes to go through: sites of supercells, sites of batches, crystals",
    "steps": "training steps of a round",
    "models": "encoders",
    "crystals": "crystals of the batch",
    "small_alignn": "ALIGNN with 2 + 2 layers of width 64",
    "labels": "labels to learn from",
    "draws": "draws of the labels",
    "model": "encoder, as for pyg_dim.load",
    "plain": "compute also what symmetry makes equal",
}
CHOICES: Final = {"variants": (PUBLISHED, *OURS), "variant": tuple(OURS), "models": sorted(MODELS)}
KEPT: Final = Path(__file__).parent / "results"
DOCS: Final = Path(__file__).parents[1] / "docs"
PAGES: Final = {name: "few_labels.md" if name == "few_labels" else "benchmarks.md" for name in BENCHMARKS}
"""The page of the documentation that shows a benchmark."""
FILES: Final = ("data", "phonons", "model")
"""Options that may be paths, of which the name alone is told."""
PASSED_ON: Final = "arguments"
"""The parameter that takes what stands after --."""


def options_of(name: str) -> dict[str, Any]:
    """Options of a benchmark, and their defaults."""
    return {key: parameter.default for key, parameter in inspect.signature(BENCHMARKS[name]).parameters.items()}


def flag(option: str) -> str:
    """``--batch-sites`` for ``batch_sites``."""
    return "--" + option.replace("_", "-")


def listing() -> str:
    """What there is, a benchmark a line, and below it the options that it takes."""
    lines = []
    for name, function in BENCHMARKS.items():
        lines.append(f"{name:<12}{(function.__doc__ or '').splitlines()[0]}")
        shown = (
            "-- ..." if key == PASSED_ON else f"{flag(key)} {' '.join(map(str, as_list(default)))}"
            for key, default in options_of(name).items()
        )
        lines.append(" " * 12 + ", ".join(shown))
    return "\n".join(lines)


def as_list(value: Any) -> list[Any]:
    """Several values as they are, one as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def command_line() -> argparse.ArgumentParser:
    """The parser; options of benchmarks have no default here, so that those given can be told from the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks, or all; see --list")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--render", action="store_true", help="write tables from the JSON that is there, run nothing")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help=f"JSON to write, or a folder for NAME.json; --render reads {KEPT.name}/",
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="PAGE",
        help="page whose tables are replaced, between markers, or the folder docs, for the pages of all",
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch; by default those that it takes itself")
    for option, text in HELP.items():
        defaults = {name: given[option] for name in BENCHMARKS if option in (given := options_of(name))}
        example = next(iter(defaults.values()))
        text = f"{text} ({', '.join(defaults)})"
        if isinstance(example, bool):
            parser.add_argument(flag(option), action="store_true", default=None, help=text)
        else:
            several = "+" if isinstance(example, tuple) else None
            kind, known = type(as_list(example)[0]), CHOICES.get(option)
            parser.add_argument(
                flag(option), type=kind, nargs=several, choices=known, metavar=option.upper(), help=text
            )
    return parser


def chosen(names: Sequence[str]) -> list[str]:
    """Names of benchmarks, without repetition; all of them for "all".

    Raises:
        ValueError: an unknown name, or none.
    """
    if unknown := [name for name in names if name not in (*BENCHMARKS, "all")]:
        raise ValueError(f"no benchmark is called {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}, all")
    if not names:
        raise ValueError(f"name at least one benchmark: {', '.join(BENCHMARKS)}, all")
    return list(BENCHMARKS) if "all" in names else list(dict.fromkeys(names))


def command_of(name: str, given: dict[str, Any], threads: int | None, passed_on: Sequence[str]) -> str:
    """The command that runs a benchmark again, with names of files instead of their paths."""
    words = ["python", "benchmarks/run.py", name]
    for option, value in (given | ({} if threads is None else {"threads": threads})).items():
        shown = [Path(value).name] if option in FILES else map(str, as_list(value))
        words += [flag(option)] if value is True else [flag(option), *shown]
    if passed_on:
        words += ["--", *(Path(word).name if Path(word).exists() else word for word in passed_on)]
    return shlex.join(words)


def run(name: str, given: dict[str, Any], threads: int | None, passed_on: Sequence[str]) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        name: which.
        given: options that were given; those that it does not take are for others.
        threads: of PyTorch.
        passed_on: arguments of a program with a command line of its own.

    Returns:
        Its result.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    known = options_of(name)
    given = {option: value for option, value in given.items() if option in known}
    settings = {option: value for option, value in (known | given).items() if option != PASSED_ON}
    load = os.getloadavg()[0]
    found = BENCHMARKS[name](**settings, **({PASSED_ON: passed_on} if PASSED_ON in known else {}))
    facts = results.machine(settings.get("device", "cpu"), load)  # afterwards: some programs set their own threads
    settings |= {option: Path(settings[option]).name for option in FILES if option in settings}
    about = (BENCHMARKS[name].__doc__ or "").splitlines()[0]
    return results.result(name, about, command_of(name, given, threads, passed_on), settings, facts, found)


def page_of(name: str, given: Path) -> Path:
    """The page that shows a benchmark: the one that was given, or that of the benchmark in a folder."""
    return given / PAGES[name] if given.is_dir() else given


def run_and_write(
    name: str, given: dict[str, Any], threads: int | None, passed_on: Sequence[str], json: Path | None,
    markdown: Path | None,
) -> None:  # fmt: skip
    """Run one benchmark, print its tables, and write what was asked for."""
    made = run(name, given, threads, passed_on)
    print(f"{made['about']}\n\n{render.block(made)}\n", flush=True)
    if json is not None:
        results.write(json / f"{name}.json" if json.is_dir() else json, made)
    if markdown is not None:
        render.render([made], page_of(name, markdown))


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says.

    Raises:
        SystemExit: it asks for something that there is not, or a benchmark failed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    passed_on, words = words[cut + 1 :], words[:cut]
    parser = command_line()
    args = parser.parse_args(words)
    if args.list:
        print(listing())
        return
    try:
        if args.render:
            for path in sorted((args.json or KEPT).glob("*.json")):
                made = results.read(path)
                render.render([made], page_of(made["benchmark"], args.markdown or DOCS))
            return
        names = chosen(args.names)
        given = {option: value for option in HELP if (value := getattr(args, option)) is not None}
        taken = {option for name in names for option in options_of(name)}
        if foreign := [flag(option) for option in given if option not in taken]:
            raise ValueError(f"{', '.join(names)}: no option {', '.join(foreign)}; --list says which there are")
        numbers = {option: [v for v in as_list(value) if isinstance(v, int)] for option, value in given.items()}
        if small := [
            flag(option) for option, values in numbers.items() if option != "seed" and min(values, default=1) < 1
        ]:
            raise ValueError(f"{', '.join(small)} must be at least 1")
        if passed_on and (len(names) > 1 or PASSED_ON not in taken):
            raise ValueError(f"{', '.join(names)}: arguments after -- are for one program with its own command line")
        if len(names) > 1 and args.json is not None and not args.json.is_dir():
            raise ValueError(f"--json {args.json}: several results need a folder that exists")
        if given.get("device", "cpu") != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"--device {given['device']}: PyTorch finds no CUDA device here; use --device cpu")
        if args.markdown is not None:
            for name in names:  # before the work, not after it
                render.fill(page_of(name, args.markdown).read_text(encoding="utf-8"), name, "")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if len(names) == 1:
        run_and_write(names[0], given, args.threads, passed_on, args.json, args.markdown)
        return
    failed = []
    for name in names:
        once = (name, given, args.threads, (), args.json, args.markdown)
        process = multiprocessing.get_context("spawn").Process(target=run_and_write, args=once)
        process.start()
        process.join()
        failed += [name] if process.exitcode else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their messages stand above")


if __name__ == "__main__":
    main()
