"""Time a training step of Site-Net Deep InfoMax: eager against torch.compile, in turn, in one process.

``python benchmarks/sitenet_step.py --data crystals.parquet`` prints the median time of each, crystals per second, the
most memory that tensors took within a step, and the median of the ratios step by step, which holds where the speed of
the machine drifts. ``--reference`` adds the step as it was published, ``reference_sitenet_dim.py``, on the same
crystals and parameters. Batches are on hand, padded ones as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import reference_sitenet_dim as reference
import torch
from torch import Tensor

from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.models import build
from pyg_dim.objectives.deep_infomax import DeepInfoMax


def peak_memory(step: Callable[[], Any]) -> float:
    """Most bytes of tensors on the CPU that a step holds at a time, beyond those it found, in 1e6."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="prototypes", help="crystals, as for train.py")
    parser.add_argument("--batch-sites", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument("--reference", action="store_true", help="take the step as it was published as well")
    args = parser.parse_args()

    torch.manual_seed(0)
    encoder = build("sitenet")
    objective = DeepInfoMax(encoder)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=1e-4)
    loader = CrystalLoader(load_dataset(args.data), encoder.graph, args.batch_sites)
    batches = [batch for batch, _ in zip(loader, range(args.steps), strict=False)]
    padded = [reference.pad_pairs(batch) for batch in batches] if args.reference else []

    def ours(number: int, compiled: bool) -> Tensor:
        encoder.set_compile(compiled)
        return objective(batches[number])["total"]

    programs: dict[str, Callable[[int], Tensor]] = {
        "eager": partial(ours, compiled=False),
        "compiled": partial(ours, compiled=True),
    }
    if args.reference:
        programs = {"reference": lambda number: reference.training_loss(encoder, padded[number])} | programs

    def step(program: str, number: int) -> float:
        start = time.perf_counter()
        optimiser.zero_grad()
        programs[program](number).backward()
        optimiser.step()
        return time.perf_counter() - start

    first = {program: step(program, 0) for program in programs}
    for number in range(min(3, len(batches))):
        for program in programs:
            step(program, number)
    times: dict[str, list[float]] = {program: [] for program in programs}
    for number in range(len(batches)):
        for program, taken in times.items():
            taken.append(step(program, number))
    crystals = sum(batch.num_graphs for batch in batches)
    print(f"{len(batches)} batches of {args.batch_sites} sites, {crystals} crystals, {torch.get_num_threads()} threads")
    if padded:
        pairs = sum(batch.edge_dist.numel() for batch in batches)
        places = sum(batch.distance.numel() for batch in padded)
        print(f"{pairs} pairs, {places} with padding")
    for program, taken in times.items():
        median = statistics.median(taken)
        print(
            f"{program:>9}: median {median * 1e3:.0f} ms a step, {crystals / len(batches) / median:.0f} crystals/s, "
            f"{peak_memory(partial(step, program, 0)):.0f} MB at most, first step {first[program]:.1f} s"
        )
    names = list(programs)
    for slow, fast in [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]:
        ratios = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
        print(f"{slow} / {fast}: median of the ratios {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
