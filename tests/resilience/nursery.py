"""Runs commands of pyg-dim in processes of their own, and kills them at a moment that is told.

A process that has imported the package forks one for each command, so that a command costs no start. Moments are
counted in *ticks*: files of the working folder that are opened, renamed or removed, and steps of the work (training
and validation steps, probes fitted, vectors computed and written). So a moment is the same on a slow machine and a fast
one, and the moments around files, which are the dangerous ones, are many. A moment can be told in seconds, too.

Each line of the standard input is a command, each line of the standard output says how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401 - imported once, here
import pymatgen.core  # noqa: F401
import torch

from pyg_dim import cli, embedding
from pyg_dim.data import importing
from pyg_dim.data.embedding_files import FILES
from pyg_dim.experiments import probing, reproduce, study
from pyg_dim.experiments.scales import RECIPES, SCALES, Scale
from pyg_dim.training.module import TrainingModule

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
TINY = {
    "site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8], "local_channels": 8,
    "pre_pool": [8], "post_pool": [8, 8], "supercell_sites": 8,
}  # fmt: skip


class Clock:
    """Counts ticks, and ends the process at one of them."""

    def __init__(self, folder: str, last: int | None) -> None:
        self.folder, self.last, self.ticks = folder, last, 0

    def tick(self) -> None:
        if self.ticks == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.ticks += 1

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not arguments or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.fspath(arguments[0])
        if isinstance(path, str) and (not path.startswith("/") or path.startswith(self.folder)):
            self.tick()


def counted(owner: Any, name: str, clock: Clock) -> None:
    """Let each call of a function be a tick."""
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        clock.tick()
        return original(*arguments, **options)

    setattr(owner, name, call)


def make_small() -> None:
    """Parts of an import, an embedding and an experiment that take no time."""
    importing.CHUNK, importing._FEW = 6, 10**9
    embedding._PIECE = 1
    tiny = {"lr": 1e-2, "batch_sites": 24, "compile": False, "accelerator": "cpu", "encoder": TINY}
    RECIPES["dim"] = tiny
    SCALES["smoke"] = Scale(
        crystals=None, epochs=2, ablation_crystals=None, ablation_epochs=2, lever_epochs=1, more_epochs=1,
        supervised_epochs=1, draws=2, transfer_draws=1, pool=None, tsne_crystals=10,
    )  # fmt: skip
    for module in (study, reproduce):
        module.ABLATIONS = {"all": {}, "other": {"kinds": "other"}}
    reproduce.SIZES = (8, 16)


def child(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["folder"])
    clock = Clock(job["folder"], job["tick"])
    for owner, name in (
        (TrainingModule, "training_step"),
        (TrainingModule, "validation_step"),
        (probing, "fit_probes"),
        (embedding, "represent"),
        *((kind, step) for kind in FILES.values() for step in ("write", "close")),
    ):
        counted(owner, name, clock)
    sys.addaudithook(clock.hear)
    status = 70
    try:
        status = cli.main(job["arguments"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 71
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(job["pipe"], str(clock.ticks).encode())
        os._exit(status)


def run(job: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    job["pipe"] = write
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(read)
        child(job)
    os.close(write)
    ended, status = 0, 0
    while job["seconds"] is not None and time.monotonic() - start < job["seconds"] and not ended:
        ended, status = os.waitpid(process, os.WNOHANG)
        time.sleep(0.001)
    if not ended:
        if job["seconds"] is not None:
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    with os.fdopen(read) as pipe:
        ticks = pipe.read()
    return {
        "status": os.waitstatus_to_exitcode(status), "ticks": int(ticks or -1), "seconds": time.monotonic() - start,
        "log": Path(job["log"]).read_text(errors="replace"),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    make_small()
    # Commands write to standard output; answers have a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
