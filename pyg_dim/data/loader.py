"""Batches of crystals by a budget of sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.dataset import CrystalDataset


class CrystalLoader:
    """Iterate over batches that fill a budget of unique sites, with the edges a model wants.

    Crystals are taken in the shuffled order, without sorting by size: false samples of the kind "other" have to be
    drawn without bias. The order depends on the seed and the epoch alone. The next batch is built in a thread while
    one is in use.

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
        self.seed = seed
        self.shuffle = shuffle
        self.targets = tuple(targets)
        self.shard = shard
        self.epoch = 0
        self._num_sites = dataset.num_sites.numpy()
        self._plan = self._make_plan()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows.

        Args:
            epoch: number of the epoch, from 0.
        """
        self.epoch = epoch
        if self.shuffle:
            self._plan = self._make_plan()

    def __len__(self) -> int:
        """Number of batches of this process in the current epoch."""
        return len(self._share())

    def __iter__(self) -> Iterator[CrystalBatch]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crystal-loader") as thread:
            rows = iter(self._share())
            pending = thread.submit(self._build, next(rows))
            for following in rows:
                batch = pending.result()
                pending = thread.submit(self._build, following)
                yield batch
            yield pending.result()

    def _build(self, rows: Tensor) -> CrystalBatch:
        with torch.no_grad():
            return self.graph(self.dataset.gather(rows, self.targets))

    def _make_plan(self) -> list[Tensor]:
        n = len(self.dataset)
        # A seed sequence, not a sum: (seed, epoch) and (seed + 1, epoch - 1) are to differ.
        order = np.random.default_rng([self.seed, self.epoch]).permutation(n) if self.shuffle else np.arange(n)
        filled = np.cumsum(self._num_sites[order])
        plan, start = [], 0
        while start < n:
            before = filled[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(filled, before + self.batch_sites, side="right")))
            plan.append(torch.from_numpy(order[start:end]))
            start = end
        return plan

    def _share(self) -> list[Tensor]:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or not self.shard:
            return self._plan
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        each = -(-len(self._plan) // size)
        return [self._plan[i % len(self._plan)] for i in range(rank, each * size, size)]
