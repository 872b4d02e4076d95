"""Counts of faults, and small data on disk for commands that are to meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pyg_dim import models
from pyg_dim.data.elements import symbols
from pyg_dim.experiments.study import FORMATION, GAP
from pyg_dim.training import export

NURSERY = Path(__file__).with_name("nursery.py")
TINY = {
    "site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8], "local_channels": 8,
    "pre_pool": [8], "post_pool": [8, 8], "supercell_sites": 8,
}  # fmt: skip
CATIONS, ANIONS = (3, 11, 19, 37, 12, 20, 38), (9, 17, 35, 8, 16)


class Faults:
    """How many faults of a kind were put where, and how many of them did no harm."""

    def __init__(self) -> None:
        self.injected: Counter[tuple[str, str]] = Counter()
        self.survived: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def injected_into(self, where: str, kind: str) -> Iterator[None]:
        """A block that puts a fault somewhere and asserts that it does no harm."""
        self.injected[kind, where] += 1
        yield
        self.survived[kind, where] += 1

    def table(self) -> str:
        rows = [f"| {kind} | {where} | {n} | {self.survived[kind, where]} |" for (kind, where), n in self._sorted()]
        total = f"| all | | {self.injected.total()} | {self.survived.total()} |"
        return "\n".join(["| fault | where | injected | survived |", "|---|---|---:|---:|", *rows, total])

    def _sorted(self) -> list[tuple[tuple[str, str], int]]:
        return sorted(self.injected.items())


FAULTS = Faults()


@pytest.fixture(scope="session")
def faults() -> Faults:
    return FAULTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts; with several processes of pytest each has its own, and none is shown."""
    if FAULTS.injected:
        terminalreporter.write_line(f"\n{FAULTS.table()}")


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        status: exit status, negative for a signal.
        ticks: of the clock of the command; -1 where it was killed.
        seconds: from its start.
        log: what it wrote.
    """

    status: int
    ticks: int
    seconds: float
    log: str


@dataclass
class Nursery:
    """Runs commands of pyg-dim in processes of their own, see ``nursery.py``."""

    process: subprocess.Popen[str]
    log: Path
    commands: list[list[str]] = field(default_factory=list)

    def run(self, folder: Path, arguments: list[str], tick: int | None = None, seconds: float | None = None) -> Ended:
        """Run a command in a folder; kill it at a tick, or after a time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"folder": str(folder), "arguments": arguments, "tick": tick, "seconds": seconds, "log": str(self.log)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the nursery has ended"
        return Ended(**json.loads(answer))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(NURSERY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    yield Nursery(process, tmp_path_factory.mktemp("nursery") / "log.txt")
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def parquet(crystals: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of 70 binary crystals of two prototypes with two labels."""
    chosen = [replace(crystals[name], z=np.array([a, x])) for name in ("NaCl", "ZnS") for a in CATIONS for x in ANIONS]
    names = symbols()
    energy = [float(c.z[0] - 0.5 * c.z[1]) for c in chosen]
    table = {
        "immutable_id": [f"c{row}" for row in range(len(chosen))],
        "lattice_vectors": [c.cell.tolist() for c in chosen],
        "species_at_sites": [[names[z] for z in c.z] for c in chosen],
        "cartesian_site_positions": [c.positions().tolist() for c in chosen],
        FORMATION: energy,
        GAP: [abs(value) for value in energy],
    }
    path = tmp_path_factory.mktemp("data") / "binaries.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="session")
def cifs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 CIF files of rock salts."""
    folder = tmp_path_factory.mktemp("cifs") / "cifs"
    folder.mkdir()
    names = symbols()
    for number in range(30):
        cation, anion = names[CATIONS[number % 7]], names[ANIONS[number % 5]]
        edge = 3.5 + 0.02 * number
        lengths = "".join(f"_cell_length_{axis} {edge}\n_cell_angle_{angle} 60\n" for axis, angle in _AXES)
        sites = f"{cation}1 {cation} 0 0 0\n{anion}1 {anion} 0.5 0.5 0.5\n"
        loop = "loop_\n_atom_site_label\n_atom_site_type_symbol\n" + "".join(
            f"_atom_site_fract_{axis}\n" for axis in "xyz"
        )
        (folder / f"salt{number:02d}.cif").write_text(f"data_salt\n{lengths}{loop}{sites}")
    return folder


_AXES = (("a", "alpha"), ("b", "beta"), ("c", "gamma"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a small encoder."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    export(models.build("sitenet", **TINY), path)
    return path


@pytest.fixture(scope="session")
def run_file(parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file with the options of a run of a second, ``runs/run`` in the folder where it is started."""
    values = {
        "data": str(parquet), "epochs": 3, "batch_sites": 24, "lr": 1e-3, "accelerator": "cpu", "compile": False,
        "logdir": "runs", "name": "run", "val_fraction": 0.2, "encoder": TINY,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("options") / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
