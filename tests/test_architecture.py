"""Who may import whom: downwards only, and a core that needs torch and PyG alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {
    "pool",
    "wrap",
    "isolation",
    "level",
    "tape",
    "constituents",
    "critic",
    "noise",
    "losses",
    "rows",
    "scoring",
    "native",
    "false_samples",
}
# Each may import itself and what follows; "core" and "data" lie side by side at the bottom. Kernels serve both.
LAYERS = {
    "cli": {"prediction", "embedding", "experiments", "training", "evaluate", "objectives", "models", "data", "core"},
    "prediction": {"embedding", "training", "evaluate", "objectives", "models", "data", "core"},
    "embedding": {"training", "evaluate", "objectives", "models", "data", "core"},
    "embedder": {"training", "evaluate", "objectives", "models", "data", "core"},
    "experiments": {"training", "evaluate", "objectives", "models", "data", "core"},
    "training": {"evaluate", "objectives", "models", "data", "core"},
    "evaluate": {"objectives", "models", "data", "core"},
    "objectives": {"models", "data", "core"},
    "models": {"data", "core"},
    "data": {"native"},
    "core": {"data.keys"},
}
FILES = [*(ROOT / "pyg_dim").rglob("*.py"), *(ROOT / "models").rglob("*.py")]


def layer(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "pyg_dim" or len(parts) == 1:
        return None
    return "core" if parts[1] in CORE else parts[1]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "pyg_dim" else ("pyg_dim", *parts))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "pyg_dim" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    mine = layer(module_of(path))
    if mine is None or mine == "__init__":
        return  # the package itself gathers the public names
    for imported in imports(path):
        theirs = layer(imported)
        allowed = theirs in (None, mine, "__version__") or theirs in LAYERS[mine]
        allowed |= any(imported.startswith(f"pyg_dim.{exception}") for exception in LAYERS[mine])
        assert allowed, f"{module_of(path)} imports {imported}"


def test_the_core_needs_torch_and_pyg_alone() -> None:
    """Levels, false samples, objectives and models work where nothing else is installed."""
    # None in sys.modules makes an import fail. PyG itself does without these where they are not there.
    program = """
import sys
absent = ["pymatgen", "ase", "spglib", "lightning", "pyarrow", "pandas", "sklearn", "matplotlib", "jsonargparse"]
sys.modules.update(dict.fromkeys(absent))
import pyg_dim
import pyg_dim.false_samples.permutation
import pyg_dim.false_samples.transplant
import pyg_dim.objectives.deep_infomax
import pyg_dim.models
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
