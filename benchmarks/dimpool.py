"""Time what Deep InfoMax costs a PyG model: bare and with levels, in turn, in one process.

``python benchmarks/dimpool.py`` prints, as a Markdown table, the median time of the bare module and the median of the
ratios, pair by pair, of the same module with levels to it: outside a recording, and inside one with the loss. The ratio
of two equal bare modules stands beside them; it says how far such a ratio can be from one by chance. Times are those of
the processor, so that other work on the machine disturbs less; run it on one thread (``OMP_NUM_THREADS=1``).
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.nn import GIN, MaxAggregation, MeanAggregation, SAGEConv

from pyg_dim import DIMPool, record, wrap

CHANNELS = 64
Call = Callable[[], object]


def ratios(bare: Call, other: Call, seconds: float) -> tuple[float, tuple[float, float, float]]:
    """Median processor time of ``bare`` in ms; median and quartiles of the time of ``other`` over it."""

    def timed(call: Call) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    for _ in range(5):
        timed(bare), timed(other)
    single, found = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 10:
        # Either may be first, so that neither always meets a cache that the other has filled.
        if random.random() < 0.5:
            first, second = timed(bare), timed(other)
        else:
            second, first = timed(other), timed(bare)
        single.append(first)
        found.append(second / first)
    low, middle, high = statistics.quantiles(found, n=4)
    return 1e3 * statistics.median(single), (middle, low, high)


class Case:
    """A module, bare and with levels, and its inputs."""

    def __init__(self, name: str, bare: nn.Module, levels: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.name, self.bare, self.levels, self.inputs = name, bare, levels, inputs
        self.same = copy.deepcopy(bare)

    def forward(self, module: nn.Module) -> Call:
        """One forward pass without gradient."""

        def call() -> None:
            with torch.no_grad():
                module(*self.inputs)

        return call

    def backward(self, module: nn.Module, recorded: bool = False) -> Call:
        """A forward and a backward pass, with the loss of the tape where recorded."""
        x = self.inputs[0].clone().requires_grad_()
        learned = [x, *(p for name, p in module.named_parameters() if recorded or "level" not in name)]

        def call() -> None:
            if recorded:
                with record(module) as tape:
                    out = module(x, *self.inputs[1:])
                loss = out.sum() + tape.loss()
            else:
                loss = module(x, *self.inputs[1:]).sum()
            torch.autograd.grad(loss, learned)

        return call


class Pooled(nn.Module):
    """An aggregation over a stated number of groups."""

    def __init__(self, pool: nn.Module, groups: int) -> None:
        super().__init__()
        self.pool, self.groups = pool, groups

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """[groups, C] vectors."""
        return self.pool(x, index, dim_size=self.groups)


def cases(rows: int) -> list[Case]:
    """Aggregations of ``rows`` vectors in sets of ten; layers on a graph with as many edges."""
    groups = rows // 10
    x, index = torch.randn(rows, CHANNELS), torch.arange(rows) // 10
    found = [
        Case(name, Pooled(kind(), groups), Pooled(DIMPool(kind(), CHANNELS), groups), (x, index))
        for name, kind in (("mean", MeanAggregation), ("max", MaxAggregation))
    ]
    nodes, edges = torch.randn(groups, CHANNELS), torch.stack([torch.randint(groups, (rows,)), index])
    # The same kind of path in both: a mean that PyG does not fuse into one product.
    sage = SAGEConv(CHANNELS, CHANNELS, aggr=MeanAggregation())
    pooled = SAGEConv(CHANNELS, CHANNELS, aggr=DIMPool(MeanAggregation(), CHANNELS))
    found.append(Case("SAGEConv, mean as DIMPool", sage, pooled, (nodes, edges)))
    gin = GIN(CHANNELS, CHANNELS, num_layers=3)
    found.append(Case("GIN of 3 layers, wrapped", gin, wrap(copy.deepcopy(gin), nodes, edges), (nodes, edges)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each ratio")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ratios: median [quartiles]\n")
    print(
        "| rows | module | bare forward | two bare ones | with levels | bare forward + backward | two bare ones "
        "| with levels | recorded, with loss |"
    )
    print("| ---: | --- |" + " ---: |" * 7)
    for rows in args.rows:
        for case in cases(rows):
            cells = []
            for way in (case.forward, case.backward):
                milliseconds, equal = ratios(way(case.bare), way(case.same), args.seconds)
                cells += [f"{milliseconds:.3g} ms", equal, ratios(way(case.bare), way(case.levels), args.seconds)[1]]
            cells.append(ratios(case.backward(case.bare), case.backward(case.levels, recorded=True), args.seconds)[1])
            shown = [c if isinstance(c, str) else f"{c[0]:.3f} [{c[1]:.3f}, {c[2]:.3f}]" for c in cells]
            print(f"| {rows:,} | {case.name} | ".replace(",0", " 0") + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
