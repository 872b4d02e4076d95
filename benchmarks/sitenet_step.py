"""Time a training step of Site-Net Deep InfoMax: eager against torch.compile, in turn, in one process.

``python benchmarks/sitenet_step.py --data crystals.parquet`` prints the median time of each, crystals per second, and
the median of the ratios step by step, which holds where the speed of the machine drifts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.models import build
from pyg_dim.objectives.deep_infomax import DeepInfoMax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="prototypes", help="crystals, as for train.py")
    parser.add_argument("--batch-sites", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    args = parser.parse_args()

    torch.manual_seed(0)
    encoder = build("sitenet")
    objective = DeepInfoMax(encoder)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-4)
    loader = CrystalLoader(load_dataset(args.data), encoder.graph, args.batch_sites)
    batches = [batch for batch, _ in zip(loader, range(args.steps), strict=False)]

    def step(batch: object, compiled: bool) -> float:
        encoder.set_compile(compiled)
        start = time.perf_counter()
        optimiser.zero_grad()
        objective(batch)["total"].backward()
        optimiser.step()
        return time.perf_counter() - start

    first = {compiled: step(batches[0], compiled) for compiled in (False, True)}
    for batch in batches[:3]:
        for compiled in (False, True):
            step(batch, compiled)
    times: dict[bool, list[float]] = {False: [], True: []}
    for batch in batches:
        for compiled, taken in times.items():
            taken.append(step(batch, compiled))
    crystals = sum(batch.num_graphs for batch in batches)
    print(f"{len(batches)} batches of {args.batch_sites} sites, {crystals} crystals, {torch.get_num_threads()} threads")
    for compiled, taken in times.items():
        median = statistics.median(taken)
        print(
            f"{'compiled' if compiled else 'eager':>8}: median {median * 1e3:.0f} ms a step, "
            f"{crystals / len(batches) / median:.0f} crystals/s, first step {first[compiled]:.1f} s"
        )
    ratios = [eager / compiled for eager, compiled in zip(times[False], times[True], strict=True)]
    print(f"eager / compiled: median of the ratios {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
