"""The documentation tells the truth: its code runs, prints what it shows, and its flags exist."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from pyg_dim.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\S+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str
    line: int
    follows_directly: bool
    """Whether it stands right below the block before it, with no line between."""


def blocks(page: Path) -> list[Block]:
    text, end, found = page.read_text(encoding="utf-8"), -1, []
    for match in FENCE.finditer(text):
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, match.start() == end))
        end = match.end()
    return found


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if any(block.language == language for block in blocks(page))]


def test_every_fence_is_found():
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page.name


@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.stem)
def test_python_blocks_run_and_print_what_is_shown(page, tmp_path, monkeypatch, capsys):
    """All blocks of a page in one namespace; a ``text`` block right below one is what it prints."""
    monkeypatch.chdir(tmp_path)
    # The command, called by other tests, lets the package speak on the same stream.
    monkeypatch.setattr(logging.getLogger("pyg_dim"), "handlers", [])
    namespace = {"__name__": "docs"}
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            capsys.readouterr()
            # Empty lines first, so that a traceback names the line of the page.
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)  # noqa: S102
            printed = capsys.readouterr().out
        elif block.language == "text" and block.follows_directly:
            shown = block.text.splitlines()
            # What a run says while it trains comes before what a block prints itself.
            assert printed.splitlines()[-len(shown) :] == shown, f"{page.name}, line {block.line}"


def test_flags_of_shell_blocks_exist(capsys):
    known = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known[command] = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    used = {}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "shell":
                for line in block.text.replace("\\\n", " ").splitlines():
                    if benchmark := re.search(r"python (benchmarks/\S+)", line):
                        assert (ROOT / benchmark[1]).exists(), line
                        continue
                    if line.startswith("tensorboard --logdir "):
                        continue
                    line = re.sub(r"^for \w+ in [\w -]+; do (.*); done$", r"\1", line)
                    called = re.match(r"(?:pyg-dim|python) (\w+)(?:\.py)?(?= |$)", line)
                    assert called, line
                    assert called[1] in known, line
                    used.setdefault(called[1], set()).update(re.findall(r"(?<=\s)--[\w.-]+", line))
    assert set(used) == set(known), "a command that no page shows"
    assert used["train"]
    assert used["import"]
    for command, flags in used.items():
        assert flags <= known[command], flags - known[command]


def test_pages_build_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason=f"needs {module}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api.html").exists()
