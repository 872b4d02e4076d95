"""What a benchmark leaves behind: tables with all that tells where they come from, as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from alternate import Timing

from pyg_dim.evaluate.formatting import replace_file


@dataclass
class Table:
    """Rows of cells by title; a cell is a text, a number or a :class:`~alternate.Spread`."""

    rows: list[dict[str, Any]]
    title: str = ""


@dataclass
class Measured:
    """What a benchmark returns.

    Attributes:
        tables: in the order to show them.
        notes: sentences that belong to them, about the data for example.
        timings: seconds and work of every round, kept and not shown.
        printed: Markdown that a program printed itself.
    """

    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    printed: str = ""

    def keep(self, timings: Mapping[str, Timing], **case: Any) -> None:
        """Keep the rounds of every variant of one case."""
        self.timings += [
            case | {"variant": name, "seconds": [round(s, 6) for s in timing.seconds], "work": timing.work}
            for name, timing in timings.items()
        ]


def machine(device: str, load: float) -> dict[str, Any]:
    """What the numbers depend on besides the program.

    Args:
        device: "cpu" or a GPU.
        load: processes that wanted a core, on average, in the minute before.

    Returns:
        Plain values by name.
    """
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    facts: dict[str, Any] = {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "load before": round(load, 2),
    }
    if torch.device(device).type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def result(
    name: str,
    about: str,
    command: str,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    found: Measured,
) -> dict[str, Any]:
    """Put together what is written.

    Args:
        name: of the benchmark.
        about: one line about it.
        command: that runs it again.
        settings: every argument that it was called with.
        facts: from :func:`machine`.
        found: what it returned.

    Returns:
        Plain values only.
    """
    values = {
        "benchmark": name,
        "about": about,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": dict(facts),
        "settings": dict(settings),
        **dataclasses.asdict(found),
    }
    return json.loads(json.dumps(values))


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result, in one step."""
    replace_file(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a result.

    Args:
        path: from :func:`write`.

    Returns:
        Its values.

    Raises:
        ValueError: it holds something else; the message names the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); run the benchmark again") from error
    wanted = {"benchmark", "command", "date", "machine", "settings", "tables", "notes", "printed"}
    if not isinstance(values, dict) or wanted - values.keys():
        raise ValueError(f"{path}: not the result of a benchmark; run.py NAME --json {path.name} writes one")
    return values
