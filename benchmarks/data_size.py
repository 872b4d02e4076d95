"""Whether the number of crystals of the data matters to the speed of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from alternate import Variant, alternate, rows
from programs import FASTEST, Ours, endless, switches_of
from results import Measured, Table

from pyg_dim.data import CrystalDataset, CrystalLoader, load_dataset


def data_size(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 10,
    sizes: Sequence[int] = (10_000, 50_000),
    steps: int = 10,
    batch_sites: int = 1200,
    variant: str = FASTEST,
) -> Measured:
    """Steps of an epoch, batches built by the loader, on parts of the data and on all of it.

    The parts are drawn at random, each within the next, so that their crystals are alike.
    """
    dataset = load_dataset(data).to(device)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))

    def epoch(part: CrystalDataset) -> Variant:
        program = Ours(switches_of(variant), seed, supercell_sites=50, device=device)
        batches = endless(CrystalLoader(part, program.encoder.graph, batch_sites, seed=seed))
        return lambda number: sum(program.learn(batch) for batch in islice(batches, steps))

    parts = {f"all {len(dataset)} crystals": dataset}
    parts |= {f"{size} crystals": dataset.subset(order[:size]) for size in sizes if size < len(dataset)}
    timings = alternate({name: epoch(part) for name, part in parts.items()}, rounds, warmup=1, device=device)
    found = Measured([Table(rows(timings, call="round"))])
    found.notes += [f"{name}: {part.z.numel() / len(part):.2f} sites a crystal" for name, part in parts.items()]
    found.keep(timings)
    return found
