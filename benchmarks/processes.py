"""Training by several processes on one CPU: PyTorch's DistributedDataParallel with gloo."""

from __future__ import annotations

import multiprocessing
import tempfile
from contextlib import ExitStack
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from alternate import alternate, rows
from programs import FASTEST, Ours, endless, switches_of
from results import Measured, Table
from torch import nn

from pyg_dim.data import CrystalLoader, load_dataset

TEAMS: Final = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes of 1 thread": (2, 1)}
"""Processes, and threads of each."""


def processes(
    data: str = "prototypes",
    seed: int = 0,
    rounds: int = 10,
    steps: int = 10,
    batch_sites: int = 1200,
    variant: str = FASTEST,
) -> Measured:
    """Steps of an epoch by one process with one or two threads, and by two processes with a thread each.

    Every process has batches of the full size; they wait for orders while others are timed.
    """
    switches_of(variant)
    settings = {"data": data, "seed": seed, "steps": steps, "batch_sites": batch_sites, "variant": variant}
    with ExitStack() as stack:
        variants = {name: stack.enter_context(Team(*team, settings)) for name, team in TEAMS.items()}
        timings = alternate(variants, rounds, warmup=1)
    found = Measured([Table(rows(timings, call="round"))])
    found.keep(timings)
    return found


class Team:
    """Processes that train together whenever they are called, and wait in between.

    Args:
        size: how many.
        threads: of each.
        settings: arguments of :func:`processes` but for the rounds.
    """

    def __init__(self, size: int, threads: int, settings: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = (Path(self._folder.name) / "meeting").as_uri()
        self._members, self._ends = [], []
        for rank in range(size):
            here, there = context.Pipe()
            member = context.Process(target=_work, args=(there, rank, size, threads, meeting, settings), daemon=True)
            member.start()
            there.close()  # so that the end of the process is seen here
            self._members.append(member)
            self._ends.append(here)
        self._answers()  # all are ready, so that starting them is not timed

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.close()  # a process that finds nobody there goes home
        for member in self._members:
            member.join(timeout=30)
            if member.is_alive():
                member.terminate()
        self._folder.cleanup()

    def __call__(self, number: int) -> int:
        """Let all take their steps; crystals of all of them.

        Raises:
            RuntimeError: one of them ended.
        """
        for end in self._ends:
            end.send(number)
        return self._answers()

    def _answers(self) -> int:
        try:
            return sum(end.recv() for end in self._ends)
        except EOFError as error:
            raise RuntimeError("a process ended before its steps were done; its own message stands above") from error


def _work(orders: Connection, rank: int, size: int, threads: int, meeting: str, settings: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    if size > 1:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)

    def distribute(objective: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(objective) if size > 1 else objective

    program = Ours(switches_of(settings["variant"]), settings["seed"], 50, "cpu", distribute)
    dataset = load_dataset(settings["data"])
    # A loader takes the share of its process of every epoch's plan.
    loader = CrystalLoader(dataset, program.encoder.graph, settings["batch_sites"], seed=settings["seed"])
    torch.manual_seed(settings["seed"] + rank)  # noise and false samples of its own
    batches = endless(loader)
    orders.send(0)
    while True:
        try:
            orders.recv()
        except EOFError:
            break
        orders.send(sum(program.learn(batch) for batch in islice(batches, settings["steps"])))
    if size > 1:
        torch.distributed.destroy_process_group()
