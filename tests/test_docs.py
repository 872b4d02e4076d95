"""The documentation tells the truth: its code and its commands run, print what they show, and its flags exist.

Blocks of a page run in their order, in one folder and one namespace, as a reader would run them. Commands run in this
process, with flags behind them that make them small (``SMALL``). What is not run stands in ``NOT_RUN`` with its reason;
its flags are read by the real parser all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import itertools
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pymatgen.core import Structure
from torch_geometric.data import Batch, Data

from pyg_dim.cli import COMMANDS, main, parse_train
from pyg_dim.data import load
from pyg_dim.data.prototypes import decorated_prototypes

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "fixtures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SHELL, PYTHON = ("shell", "bash"), ("python", "py")
PROGRAMS = ("python", "pyg-dim", "pip", "tensorboard")


class Block(NamedTuple):
    language: str
    text: str
    line: int
    below_python: bool
    """Whether it stands right below a block of Python, with no line between."""


def blocks(page: Path) -> list[Block]:
    text, end, found = page.read_text(encoding="utf-8"), -1, []
    for match in FENCE.finditer(text):
        below = match.start() == end and found[-1].language in PYTHON
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, below))
        end = match.end()
    return found


def with_code(languages: Sequence[str]) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


# -- Commands that are not run ----------------------------------------------------------------------------------------


class Left(NamedTuple):
    page: str
    """Its name, or "" for all."""
    command: str
    """A pattern that is found in the command."""
    why: str


NOT_RUN = (
    Left("", r"^pip install", "needs the network; .ci/run runs both commands of the README in a fresh environment"),
    Left("", r"^python -m pytest", "is this suite"),
    Left("", r"^tensorboard ", "is a server, which does not end"),
    Left("", r"--accelerator gpu|--device cuda", "needs a GPU"),
    Left("", r"benchmarks/(run|data_layer|import_cif|dimpool)\.py", "tests/test_benchmarks.py runs each, tiny"),
    Left("results", r"", "experiments of hours on data that are not in the repository"),
    Left("experiments", r"^pyg-dim reproduce", "hours; tests/experiments runs every figure at a tiny size"),
    Left("quickstart", r"--devices 2", "starts processes of its own; tests/training/test_processes.py does so"),
    Left("quickstart", r"--teacher model\.pth", "needs a published network; tests/training/test_teachers.py makes one"),
)
OF_SITENET = "--encoder.supercell_sites=8"
SMALL: dict[str, list[str]] = {
    "train": ["--epochs=1", "--limit=24", "--batch-sites=120", OF_SITENET],
    "import": ["--workers=1"],
    "embed": ["--batch-sites=60"],
    "probe": ["--sizes=8", "--draws=1", "--probes=ridge"],
    "transfer": ["--sizes=8", "--draws=1", "--epochs=1", "--batch-sites=120"],
    "joint": ["--seeds=1", "--labels", "30", "--weights", "0.1", "--before=1", "--steps", "1"],
    "own_model": ["--seeds=1", "--steps=1", "--methods", "DIM, other"],
    "tolerance": ["--crystals=5", "--data=crystals.parquet"],
    "draw_false_samples": ["--out=drawn.png"],
}
"""Flags that make a command small; the last one of a name counts."""
SUMMARISED = ("README", "compare", "experiments")
"""Pages that need the summary or the validation part of a run, which take longer than the rest of a small one."""
OF_THE_MACHINE = ["--accelerator=cpu", "--no-compile"]
"""Flags of train that a resumed run may be given too."""

FIRST = {"experiments": "pyg-dim train", "models": "pyg-dim train --name first"}
"""What has been run before a page begins, by its name."""
PREPARED = {
    "README": ("crystals.parquet", "folder_of_cifs", "gaps.csv"),
    "compare": ("matbench_phonons.json.gz",),
    "experiments": ("crystals.parquet",),
    "models": ("crystals.parquet", "formulas.csv", "measured.csv"),
    "quickstart": ("crystals.parquet", "folder_of_cifs", "labelled.parquet", "matbench_phonons.json.gz"),
    "scale": ("lemat_bulk",),
    "your_data": ("crystals.parquet", "energies.csv", "folder_of_cifs", "more.zip", "runs"),
}
"""Files of the reader that a page takes for granted."""
STAND_INS = {
    "formation-energy-per-atom.pth.tar": "cgcnn_formation-energy-per-atom.npz",
    "model.pth": "crystal_twins_weights_simsiam.npz",
    "atom_init.json": "cgcnn_atom_init.npz",
    "MEGNet-MP-2018.6.1-Eform/": "megnet_eform.npz",
}
"""Files that others have published, and the same as arrays in ../shared/fixtures. Without these, blocks of Python that
read them are compiled only: they are many megabytes, and their licence is not ours."""


def is_left(page: Path, words: Sequence[str]) -> bool:
    """Whether a command of a page is not run."""
    return any(left.page in ("", page.stem) and re.search(left.command, shlex.join(words)) for left in NOT_RUN)


# -- What a reader has ------------------------------------------------------------------------------------------------


def salt(cation: str, anion: str, edge: float) -> Structure:
    # By hand: pymatgen's space groups take seconds.
    return Structure((np.ones((3, 3)) - np.eye(3)) * edge / 2, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def belongings(tmp_path_factory) -> Path:
    """Folder of all that ``PREPARED`` names, small."""
    folder = tmp_path_factory.mktemp("belongings")
    dataset = decorated_prototypes(60)
    weight = torch.stack([dataset[row].z.double().mean() for row in range(len(dataset))])
    names = ("formation_energy_per_atom", "band_gap")
    for name in ("crystals.parquet", "labelled.parquet"):
        dataset.with_labels({label: weight + k for k, label in enumerate(names)}).to_parquet(folder / name)
    (folder / "lemat_bulk").mkdir()
    shutil.copy(folder / "crystals.parquet", folder / "lemat_bulk" / "part-1.parquet")

    pairs = list(itertools.product(("Li", "Na", "K"), ("F", "O")))
    salts = {f"{a}{x}": salt(a, x, 4.2 + 0.2 * k) for k, (a, x) in enumerate(pairs)}
    (folder / "folder_of_cifs").mkdir()
    for name, structure in salts.items():
        structure.to(str(folder / "folder_of_cifs" / f"{name}.cif"))
    (folder / "gaps.csv").write_text("salt,gap (eV)\n" + "".join(f"{name},{k}.5\n" for k, name in enumerate(salts)))
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("RbF.cif", salt("Rb", "F", 5.6).to(fmt="cif"))
    for run in ("a", "b"):
        (folder / "runs" / run).mkdir(parents=True)
        salts["NaF"].to(str(folder / "runs" / run / "CONTCAR"), fmt="poscar")
    (folder / "energies.csv").write_text("run,energy\na,-1.5\nb,-2.5\n")

    phonons = [[crystal.as_dict(), 100.0 + 10 * k] for k, crystal in enumerate([*salts.values(), *salts.values()])]
    table = {"index": list(range(12)), "columns": ["structure", "last phdos peak"], "data": phonons}
    with gzip.open(folder / "matbench_phonons.json.gz", "wt") as file:
        json.dump(table, file)
    formulas = [f"{a}{k}{x}" for a in ("Li", "Na", "K", "Mg") for x in ("F", "O", "S") for k in (1, 2)]
    (folder / "formulas.csv").write_text("formula\n" + "\n".join(formulas) + "\n")
    (folder / "measured.csv").write_text("formula,gap\n" + "".join(f"{f},{k % 5}\n" for k, f in enumerate(formulas)))
    return folder


@pytest.fixture
def reader(request, tmp_path, monkeypatch):
    """``reader(page)``: go to an empty folder but for what the page takes for granted."""

    def begin(page: Path) -> None:
        monkeypatch.chdir(tmp_path)
        belongings = request.getfixturevalue("belongings") if page.stem in PREPARED else tmp_path
        # The crystals of the package take seconds to make: few of them.
        monkeypatch.setattr(load, "decorated_prototypes", lambda **options: decorated_prototypes(60, **options))
        for name in PREPARED.get(page.stem, ()):
            source = belongings / name
            if source.is_dir():
                shutil.copytree(source, tmp_path / name)
            else:
                shutil.copy(source, tmp_path / name)
        # Those of other tests.
        monkeypatch.setattr(logging.getLogger("pyg_dim"), "handlers", [])

    return begin


@pytest.fixture
def hub(tmp_path, monkeypatch) -> None:
    """A client of our own in the place of huggingface_hub, with a folder for a hub."""
    folder = tmp_path / "hub"

    class HfApi:
        def create_repo(self, repo_id, **_):
            (folder / repo_id).mkdir(parents=True)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, **_):
            for name in allow_patterns:
                shutil.copy(Path(folder_path) / name, folder / repo_id / name)

    client = SimpleNamespace(HfApi=HfApi, hf_hub_download=lambda repo, name, revision=None: str(folder / repo / name))
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)


# -- Commands ---------------------------------------------------------------------------------------------------------


SLURM = """SLURM_ARRAY_TASK_ID=1
srun() { while [[ $1 == -* ]]; do shift; done; "$@"; }
"""
"""What jobs of SLURM have."""


def calls(line: str) -> tuple[list[list[str]], str | None]:
    """What a line of shell calls, as bash understands it: loops, patterns, quotes, variables and comments.

    Returns:
        Words of each call, the program first; and the file that the output goes to, if it does.
    """
    tell = "tell() { printf '%s\\x1f' \"$@\" >&3; printf '\\n' >&3; }\n"
    functions = "".join(f'{program}() {{ tell {program} "$@"; }}\n' for program in PROGRAMS)
    into = re.search(r" > (\S+)$", line)
    script = tell + functions + (line[: into.start()] if into else line)
    command = ["bash", "-euc", f"exec 3>&1 1>/dev/null\n{SLURM}{script}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    found = [told.rstrip("\x1f").split("\x1f") for told in done.stdout.splitlines()]
    assert found, f"no call of {', '.join(PROGRAMS)} in: {line}"
    return found, into and into[1]


def lines_of(block: Block) -> list[str]:
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


class Run(NamedTuple):
    name: str
    """Of the subcommand, or of the program that is run by Python."""
    arguments: list[str]
    program: Path | None
    """File that Python runs, but for train.py, which is a subcommand."""


def run_of(words: Sequence[str]) -> Run:
    if words[0] == "pyg-dim":
        return Run(words[1], list(words[2:]), None)
    assert words[0] == "python", words
    program = ROOT / words[1]
    assert program.is_file(), f"{words[1]} is not in the repository"
    return Run(program.stem, list(words[2:]), None if program.stem == "train" else program)


@contextlib.contextmanager
def importable(program: Path) -> Iterator[Any]:
    """A program of the repository as a module."""
    sys.path.insert(0, str(program.parent))
    try:
        yield importlib.import_module(program.stem)
    finally:
        sys.path.remove(str(program.parent))


def execute(run: Run) -> None:
    """Run a command of the package, or a program of the repository, and see that it ends well."""
    if run.program is None:
        try:
            status = main([run.name, *run.arguments])
        except SystemExit as stop:  # after --help and --print-config
            if stop.code:
                raise
            status = 0
        assert status == 0, run
        # The command lets the package speak on the stream that shows what blocks of Python print.
        logging.getLogger("pyg_dim").handlers.clear()
        return
    threads = torch.get_num_threads()
    with importable(run.program) as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(run.program), *run.arguments])
        module.main()
    torch.set_num_threads(threads)


class _ReadError(Exception):
    """Raised where a command line has been read."""


def read_only(words: Sequence[str]) -> None:
    """Let the parser of a command read its words, and no more."""
    if words[0] == "pip":
        extras = re.search(r"\.\[(\w+)\]", shlex.join(words))
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert extras is None or extras[1] in known, words
        return
    if words[0] == "tensorboard":
        from tensorboard import default, program

        program.TensorBoard(default.get_plugins()).configure(argv=list(words))
        return
    if words[:3] == ["python", "-m", "pytest"]:
        return
    run = run_of(words)
    if run.name == "train":
        parse_train(run.arguments)
        return

    def parse(self, args=None, namespace=None, read=argparse.ArgumentParser.parse_args):
        found = read(self, args, namespace)
        if self.prog == "pyg-dim":
            return found  # the choice of the subcommand, whose parser is next
        raise _ReadError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(_ReadError):
            execute(run)


def small(page: Path, run: Run, epochs: Iterator[int]) -> Run:
    """The same with flags that make it small."""
    given = run.arguments
    if run.name != "train":
        return run._replace(arguments=[*given, *SMALL.get(run.name, [])])
    if "--resume" in given:
        return run._replace(arguments=[*given, f"--epochs={next(epochs)}", *OF_THE_MACHINE])
    flags = [OF_SITENET] if "--print-config" in given else SMALL["train"]
    if {"cgcnn", "megnet", "alignn", "roost"} & set(given):
        flags = [flag for flag in flags if flag != OF_SITENET]
    if page.stem not in SUMMARISED:
        flags = [*flags, "--val-fraction=0"]
    return run._replace(arguments=[*given, *flags, *OF_THE_MACHINE])


# -- Tests ------------------------------------------------------------------------------------------------------------


def test_every_fence_is_found():
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page.name
        known = {*SHELL, *PYTHON, "text"}
        odd = {block.language for block in blocks(page)} - known
        assert all(name.startswith("{") for name in odd), f"{page.name}: {odd}"


def namespace_of(page: Path) -> dict[str, Any]:
    """What a page takes for granted: its own imports apart, the README's crystals and batch."""
    names: dict[str, Any] = {"__name__": "docs"}
    if page.stem == "README":
        graphs = [Data(x=torch.rand(5, 16), edge_index=torch.randint(5, (2, 9))) for _ in range(3)]
        salts = [salt(a, x, 5.0) for a, x in itertools.product(("Li", "Na", "K"), ("F", "Cl"))]
        names |= {"structures": salts, "labels": [s.density for s in salts], "new_structures": salts[:2]}
        names |= {"batch": Batch.from_data_list(graphs)}
    return names


def published(text: str) -> str | None:
    """A block with files that are at hand for those of others that it names; None where they are not."""
    for name, stand_in in STAND_INS.items():
        if f'"{name}"' in text:
            if not (PUBLISHED / stand_in).exists():
                return None
            text = text.replace(f'"{name}"', repr(str(PUBLISHED / stand_in)))
    return text


@pytest.mark.parametrize("page", with_code((*PYTHON, *SHELL)), ids=lambda page: page.stem)
def test_blocks_run_in_their_order_and_print_what_is_shown(page, reader, hub, capsys):
    """A ``text`` block right below a block of Python is what that prints."""
    reader(page)
    epochs = itertools.count(2)
    namespace, printed = namespace_of(page), ""
    if page.stem in FIRST:
        execute(small(page, run_of(shlex.split(FIRST[page.stem])), epochs))
    for block in blocks(page):
        if block.language in PYTHON:
            capsys.readouterr()
            # Empty lines first, so that a traceback names the line of the page.
            text = "\n" * block.line + (published(block.text) or block.text)
            code = compile(text, str(page), "exec")
            if published(block.text) is not None:
                exec(code, namespace)  # noqa: S102
            printed = capsys.readouterr().out
        elif block.language in SHELL:
            for line in lines_of(block):
                found, into = calls(line)
                for words in found:
                    if is_left(page, words):
                        continue
                    capsys.readouterr()
                    execute(small(page, run_of(words), epochs))
                    if into:
                        Path(into).write_text(capsys.readouterr().out)
        elif block.language == "text" and block.below_python:
            shown = block.text.splitlines()
            # What a run says while it trains comes before what a block prints itself.
            assert printed.splitlines()[-len(shown) :] == shown, f"{page.name}, line {block.line}"


@pytest.mark.parametrize("page", with_code(SHELL), ids=lambda page: page.stem)
def test_what_is_not_run_is_read_by_its_parser(page, reader, capsys):
    reader(page)
    for block in blocks(page):
        for line in lines_of(block) if block.language in SHELL else ():
            for words in calls(line)[0]:
                if is_left(page, words):
                    read_only(words)


def test_every_exception_is_needed_and_every_command_shown():
    told = [(page, words) for page in with_code(SHELL) for block in blocks(page) if block.language in SHELL
            for line in lines_of(block) for words in calls(line)[0]]  # fmt: skip
    for left in NOT_RUN:
        assert any(left.page in ("", page.stem) and re.search(left.command, shlex.join(words)) for page, words in told)
    ours = [run_of(words) for _, words in told if words[0] in ("python", "pyg-dim") and words[1] != "-m"]
    assert {run.name for run in ours if run.program is None} == set(COMMANDS), "a command that no page shows"


def test_a_block_that_lies_is_caught(tmp_path):
    with pytest.raises(SystemExit):
        read_only(["pyg-dim", "train", "--epoch-count", "3"])
    with pytest.raises(SystemExit):
        read_only(["pyg-dim", "probe", "a.ckpt", "--data", "x", "--target", "y", "--nonsense"])
    with pytest.raises(SystemExit):
        read_only(["python", "benchmarks/joint.py", "--labels", "many"])
    with pytest.raises(AssertionError, match=r"benchmarks/none\.py is not in the repository"):
        read_only(["python", "benchmarks/none.py"])
    with pytest.raises(AssertionError, match="no call"):
        calls("true")
    with pytest.raises(AssertionError, match="pygdim"):
        calls("pygdim train")


def test_the_readme_has_what_a_reader_looks_for():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    assert len(re.findall(r"!\[.+\]\(docs/pictures/\S+\.png\)", text)) == 1
    commands = ("pip install -e . && python train.py --model sitenet", 'pip install -e ".[test]" && python -m pytest')
    for command in commands:  # .ci/run takes the first line that holds them
        (line,) = [line for line in text.splitlines() if command in line]
        assert line == command
    assert re.search(r"^## In the box\n\n\| part \| what it holds \|$", text, re.MULTILINE)
    for link in re.findall(r"\]\(((?:docs|pyg_dim)/[^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_pages_build_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason=f"needs {module}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api.html").exists()
