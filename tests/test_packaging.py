"""A wheel holds everything that the packages need at run time."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pyg_dim.models

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_named() -> None:
    folders = [path.parent for path in (ROOT / "pyg_dim").rglob("__init__.py")]
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found | {pyg_dim.models.__name__} == set(SETUP["packages"])


def test_every_file_that_is_no_program_is_named() -> None:
    for folder in (ROOT / "pyg_dim", ROOT / "models"):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                # A folder of data alone is one of the package that it lies in.
                home = path.parent if any(path.parent.glob("*.py")) else path.parent.parent
                package = ".".join(home.relative_to(ROOT).parts)
                assert any(path.match(pattern) for pattern in SETUP["package-data"].get(package, [])), path


def test_the_sources_of_kernels_are_among_them() -> None:
    assert set(SETUP["package-data"]["pyg_dim.native"]) == {"*.cpp", "*.h"}
    assert {path.suffix for path in (ROOT / "pyg_dim/native").iterdir() if path.is_file()} == {".py", ".cpp", ".h"}
