"""Matbench tasks by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pyg_dim.data.sources.base import Entry, Source
from pyg_dim.data.sources.split_json import STRUCTURE, open_split_json

TASKS: Final = (
    "matbench_dielectric",
    "matbench_jdft2d",
    "matbench_log_gvrh",
    "matbench_log_kvrh",
    "matbench_mp_e_form",
    "matbench_mp_gap",
    "matbench_mp_is_metal",
    "matbench_perovskites",
    "matbench_phonons",
)
"""The tasks of Matbench v0.1 that have structures."""

_COMPOSITIONS: Final = ("matbench_expt_gap", "matbench_expt_is_metal", "matbench_glass", "matbench_steels")


def is_task(name: str) -> bool:
    """Whether a source is meant as a task of Matbench.

    Args:
        name: what the user gave.

    Returns:
        True for ``matbench_...`` without folder and ending.
    """
    return name.startswith("matbench_") and "/" not in name and "." not in name


def open_task(name: str) -> Source:
    """A task, from ``NAME.json.gz`` or ``NAME.json`` in the working directory, else through matminer, which downloads.

    Args:
        name: for example ``"matbench_mp_e_form"``.

    Returns:
        The source.

    Raises:
        ValueError: no such task, or one of compositions alone.
        FileNotFoundError: the file is not there, and matminer is not installed or cannot download it.
    """
    if name in _COMPOSITIONS:
        raise ValueError(f"{name} has compositions but no structures; tasks with structures: {', '.join(TASKS)}")
    if name not in TASKS:
        raise ValueError(f"unknown Matbench task {name}; known: {', '.join(TASKS)}")
    for ending in (".json.gz", ".json"):
        if (path := Path(name + ending)).is_file():
            return open_split_json(path)
    advice = f"download {name}.json.gz (see matbench.materialsproject.org) and put it into the working directory"
    try:
        from matminer.datasets import load_dataset
    except ImportError as error:
        raise FileNotFoundError(
            f"{name}: there is no {name}.json.gz in {Path.cwd()}, and matminer is not installed; {advice}, or install "
            "matminer (pip install 'pyg-dim[baselines]')"
        ) from error
    try:
        table = load_dataset(name)
    # The loader raises whatever the network, the disk or the checksum makes it raise.
    except Exception as error:
        raise FileNotFoundError(f"{name}: matminer could not fetch it ({error}); {advice}") from error
    return _open_frame(name, table)


def _open_frame(name: str, table: Any) -> Source:
    labels = [column for column in table.columns if column != STRUCTURE]

    def entries() -> Iterator[Entry]:
        for position, index in enumerate(table.index):
            row = table.iloc[position]
            # As the file itself: identifiers are the index.
            yield Entry(str(index), "structure", row[STRUCTURE], {label: row[label] for label in labels})

    return Source(name, [], entries, len(table))
