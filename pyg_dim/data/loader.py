"""Batches of crystals by a budget of sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.queues import BatchQueue

Planned = TypeVar("Planned")
"""What a plan says of one batch."""


class PlannedLoader(ABC, Generic[Planned]):
    """Iterate over batches that are planned for a whole epoch, from its number and a seed alone.

    The next batch is built in a thread while one is in use. With torch.distributed initialised, each process iterates
    over its share of the batches of the common plan, unless ``shard=False``; the first batches are repeated where
    needed so that all processes have the same number.

    Args:
        num_crystals: crystals in all.
        seed: seed of the order.
        shuffle: whether the order changes from epoch to epoch.
        shard: whether processes share the batches; without, each has all of them (one process evaluates).
    """

    def __init__(self, num_crystals: int, seed: int, shuffle: bool, shard: bool) -> None:
        self.num_crystals = num_crystals
        self.seed = seed
        self.shuffle = shuffle
        self.shard = shard
        self.epoch = 0
        self._position = self._start = 0
        self._plan = self._make_plan()

    @abstractmethod
    def _make_plan(self) -> list[Planned]:
        """Batches of the epoch, in order."""

    @abstractmethod
    def _build(self, planned: Planned) -> CrystalBatch:
        """One batch, with its edges."""

    @abstractmethod
    def _device(self) -> torch.device:
        """Where batches are built."""

    @abstractmethod
    def _count(self, planned: Planned) -> int:
        """Number of crystals of one batch, without building it."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows, from its beginning.

        Args:
            epoch: number of the epoch, from 0.
        """
        self.epoch = epoch
        self._position = self._start = 0
        if self.shuffle:
            self._plan = self._make_plan()

    def __len__(self) -> int:
        """Number of batches of this process in the current epoch."""
        return len(self._share())

    def __iter__(self) -> Iterator[CrystalBatch]:
        start, self._start = self._start, 0
        for position, batch in enumerate(self.batches(start), start + 1):
            self._position = position
            yield batch

    def batches(self, start: int = 0) -> Generator[CrystalBatch, None, None]:
        """The batches of the current epoch from one of them on; those before it are not built.

        Args:
            start: number of the first batch.

        Yields:
            Batches of this process.
        """
        name = "crystal-loader"
        workers = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_work_alone)
        with BatchQueue(self._device()) as queue, workers as thread:
            planned = islice(self._share(), start, None)
            pending = [thread.submit(queue.make, partial(self._built, item)) for item in islice(planned, 1)]
            while pending:
                batch, done = pending.pop().result()
                pending += [thread.submit(queue.make, partial(self._built, item)) for item in islice(planned, 1)]
                yield queue.receive(batch, done)

    def crystals(self, step: int) -> list[int]:
        """Crystals that each process adds to the current epoch in one step.

        The plan is common to all processes, so each knows the numbers of the others without asking them.

        Args:
            step: number of the batch in each process.

        Returns:
            Number of crystals by process; 0 for a repeated batch, which belongs to an earlier step.
        """
        _, size = self._processes()
        return [
            self._count(self._plan[number]) if number < len(self._plan) else 0
            for number in range(step * size, (step + 1) * size)
        ]

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands: plain values, the same in all processes.

        Returns:
            "epoch"; "position", the number of batches handed out in it; and all that the plan depends on, which tells
            whether they belong to this loader.
        """
        return {"epoch": self.epoch, "position": self._position} | self._settings()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on where another one stood; after a complete epoch, with the following one.

        Args:
            state: from :meth:`state_dict` of a loader of the same crystals, seed, budget and number of processes.

        Raises:
            ValueError: the state is that of a loader with other batches; the message names what differs.
        """
        mine = self._settings()
        differ = [name for name in mine if state.get(name) != mine[name]]
        if differ:
            theirs, here = (
                ", ".join(f"{name} {settings.get(name, 'unknown')}" for name in differ) for settings in (state, mine)
            )
            raise ValueError(
                f"the state is of a loader with {theirs}; this one has {here}. Its batches are others, so it cannot go "
                "on in the middle of an epoch: use the same settings"
            )
        self.set_epoch(state["epoch"])
        if state["position"] < len(self):
            self._position = self._start = state["position"]
        else:
            self.set_epoch(state["epoch"] + 1)

    def _settings(self) -> dict[str, int]:
        """All that the batches of an epoch depend on; a number of batches says nothing where one of them differs."""
        return {
            "seed": self.seed,
            "crystals": self.num_crystals,
            "shuffle": self.shuffle,
            "processes": self._processes()[1],
        }

    def _processes(self) -> tuple[int, int]:
        """Number of this process, and how many share the batches."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or not self.shard:
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()

    def _built(self, planned: Planned) -> CrystalBatch:
        with torch.no_grad():
            return self._build(planned)

    def _share(self) -> list[Planned]:
        rank, size = self._processes()
        each = -(-len(self._plan) // size)
        return [self._plan[i % len(self._plan)] for i in range(rank, each * size, size)]


def _work_alone() -> None:
    """Let PyTorch's operators in this thread use no other one.

    A second team of threads, more than there are cores, would make those of the steps sleep after every operator.
    """
    torch.get_num_threads()  # sets the number of this thread, which would be done later otherwise
    threadpool_limits(1, user_api="openmp")


class CrystalLoader(PlannedLoader[Tensor]):
    """Iterate over batches that fill a budget of unique sites, with the edges a model wants.

    Crystals are taken in the shuffled order, without sorting by size unless ``bucket`` asks for it: false samples of
    the kind "other" have to be drawn without bias. The order depends on the seed and the epoch alone. The next batch is
    built in a thread while one is in use, on the device of the data set (:meth:`CrystalDataset.to`).

    With torch.distributed initialised, each process iterates over its share of the batches of the common plan, unless
    ``shard=False``; the first batches are repeated where needed so that all processes have the same number.

    Args:
        dataset: crystals.
        graph: adds the edges to a batch, for example ``encoder.graph``.
        batch_sites: largest number of primitive sites of a batch; a crystal that has more makes a batch of its own.
        seed: seed of the order.
        shuffle: whether the order changes from epoch to epoch, or is that of the data set.
        targets: labels that become ``y``.
        shard: whether processes share the batches; without, each has all of them (one process evaluates).
        bucket: put crystals of equal size into one batch, for models that pad to the largest one. Not for Deep
            InfoMax, whose critics could then tell true from false by the size.

    Raises:
        ValueError: an unknown target, an empty data set, or ``batch_sites`` not positive.
    """

    def __init__(
        self,
        dataset: CrystalDataset,
        graph: Callable[[CrystalBatch], CrystalBatch],
        batch_sites: int = 1200,
        seed: int = 0,
        shuffle: bool = True,
        targets: Sequence[str] = (),
        shard: bool = True,
        bucket: bool = False,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty: there is nothing to load")
        if batch_sites < 1:
            raise ValueError(f"batch_sites must be at least 1, not {batch_sites}")
        for name in targets:
            dataset.target(name)
        self.dataset = dataset
        self.graph = graph
        self.batch_sites = batch_sites
        self.targets = tuple(targets)
        self.bucket = bucket
        self._num_sites = dataset.num_sites.numpy()
        super().__init__(len(dataset), seed, shuffle, shard)

    def _settings(self) -> dict[str, int]:
        return super()._settings() | {"batch_sites": self.batch_sites, "bucket": self.bucket}

    def _device(self) -> torch.device:
        return self.dataset.pos.device

    def _build(self, planned: Tensor) -> CrystalBatch:
        return self.graph(self.dataset.gather(planned, self.targets))

    def _count(self, planned: Tensor) -> int:
        return planned.numel()

    def _make_plan(self) -> list[Tensor]:
        # A seed sequence, not a sum: (seed, epoch) and (seed + 1, epoch - 1) are to differ.
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.num_crystals) if self.shuffle else np.arange(self.num_crystals)
        if self.bucket:
            order = order[np.argsort(self._num_sites[order], kind="stable")]
        plan = fill(order, self._num_sites, self.batch_sites)
        if self.bucket and self.shuffle:
            plan = [plan[k] for k in generator.permutation(len(plan))]
        return plan


def fill(order: np.ndarray, num_sites: np.ndarray, batch_sites: int) -> list[Tensor]:
    """Cut a sequence of crystals into batches that are as full as the budget allows.

    Args:
        order: [n] int64, crystals.
        num_sites: sites of each crystal.
        batch_sites: largest number of sites of a batch; a crystal that has more makes a batch of its own.

    Returns:
        Batches of crystals, [B] int64 each.
    """
    filled = np.cumsum(num_sites[order])
    plan, start = [], 0
    while start < len(order):
        before = filled[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(filled, before + batch_sites, side="right")))
        plan.append(torch.from_numpy(order[start:end]))
        start = end
    return plan
