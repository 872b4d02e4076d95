"""Site-Net with Deep InfoMax against the published algorithm: a training step, embedding, and how both scale."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from alternate import Timing, Variant, alternate, rows
from memory import free_memory, peak_memory
from programs import COMPARED, Program, count_pairs, first_batches, programs
from results import Measured, Table

from pyg_dim.data import CrystalBatch, CrystalDataset, load_dataset

BATCHES = 10
"""Different batches on hand, at most; rounds go through them again and again."""
Work = Literal["learn", "embed"]


@dataclass(frozen=True)
class Bench:
    """Timings of one case, and what its crystals are."""

    timings: dict[str, Timing]
    memory: dict[str, int]
    crystals: int
    sites: int

    def rows(self, call: str) -> list[dict[str, Any]]:
        """A row for each variant, with its memory."""
        return [row | {"most memory, MB": self.memory[row["variant"]] / 1e6} for row in rows(self.timings, call=call)]


def compare(
    batches: Sequence[CrystalBatch], taking_part: dict[str, Program], work: Work, rounds: int, warmup: int, device: str
) -> Bench:
    """Let programs take turns on the same batches.

    Args:
        batches: without pairs, on the device.
        taking_part: programs by name.
        work: "learn" or "embed".
        rounds: timed rounds.
        warmup: rounds before them.
        device: where.
    """

    def variant(program: Program) -> Variant:
        prepared = [program.prepare(batch) for batch in batches]
        call = getattr(program, work)
        return lambda number: call(prepared[number % len(prepared)])

    variants = {name: variant(program) for name, program in taking_part.items()}
    timings = alternate(variants, rounds, warmup, device)
    memory = {name: peak_memory(partial(call, 0), device) for name, call in variants.items()}
    crystals, sites = sum(batch.num_graphs for batch in batches), sum(batch.z.numel() for batch in batches)
    return Bench(timings, memory, crystals, sites)


def about(dataset: CrystalDataset, batches: Sequence[CrystalBatch], bench: Bench, supercell_sites: int) -> str:
    """A sentence about the crystals."""
    pairs = count_pairs(batches, supercell_sites)
    return (
        f"{len(batches)} batches, {bench.crystals} of {len(dataset)} crystals; {bench.sites / bench.crystals:.1f} "
        f"sites and {pairs / bench.crystals:.0f} pairs a crystal"
    )


def _one_case(
    work: Work, data: str, device: str, seed: int, rounds: int, batch_sites: int, supercell_sites: int,
    variants: Sequence[str],
) -> Measured:  # fmt: skip
    dataset = load_dataset(data).to(device)
    batches = first_batches(dataset, min(rounds, BATCHES), batch_sites, seed)
    bench = compare(batches, programs(variants, seed, supercell_sites, device), work, rounds, 3, device)
    call = "step" if work == "learn" else "batch"
    found = Measured([Table(bench.rows(call))], [about(dataset, batches, bench, supercell_sites)])
    found.keep(bench.timings)
    return found


def step(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 20,
    batch_sites: int = 1200,
    supercell_sites: int = 50,
    variants: Sequence[str] = COMPARED,
) -> Measured:
    """A training step of Site-Net with Deep InfoMax, from the batch on hand to the optimiser's step."""
    return _one_case("learn", data, device, seed, rounds, batch_sites, supercell_sites, variants)


def embedding(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 20,
    batch_sites: int = 1200,
    supercell_sites: int = 50,
    variants: Sequence[str] = COMPARED,
) -> Measured:
    """Global representations of Site-Net without gradient, from the batch on hand."""
    return _one_case("embed", data, device, seed, rounds, batch_sites, supercell_sites, variants)


def supercell(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 5,
    sizes: Sequence[int] = (50, 100, 200, 350, 500),
    batch_sites: int = 1200,
    variants: Sequence[str] = COMPARED,
) -> Measured:
    """A training step against the size of the supercell, on the same crystals."""
    dataset = load_dataset(data).to(device)
    batches = first_batches(dataset, 2, batch_sites, seed)
    found, table, needs = Measured(), [], dict.fromkeys(variants, 0.0)
    for size in sizes:
        taking_part = programs(variants, seed, size, device)
        pairs = count_pairs(batches, size) / len(batches)
        # Tensors of the pairs make up nearly all of the memory, so that it is known from the size before.
        allowed = free_memory(device) / 2
        for name in [name for name, bytes_a_pair in needs.items() if bytes_a_pair * pairs > allowed]:
            del taking_part[name]
            needed = f"{needs[name] * pairs / 1e9:.1f} GB"
            found.notes.append(f"supercells of {size} sites: {name} would need {needed} and was left out")
        if not taking_part:
            continue
        bench = compare(batches, taking_part, "learn", rounds, 1, device)
        needs |= {name: taken / pairs for name, taken in bench.memory.items()}
        found.keep(bench.timings, size=size)
        for row in bench.rows("step"):
            a_crystal = round(pairs * len(batches) / bench.crystals)
            a_pair = 1e3 * row["ms a step"].median / pairs
            table.append({"supercell sites": size, "pairs a crystal": a_crystal} | row | {"µs a pair": a_pair})
        gc.collect()
    found.tables = [Table(table)]
    found.notes += [
        f"{name}: the cost of a crystal grows as pairs to the power {exponent:.2f}"
        for name in variants
        if not math.isnan(exponent := growth([row for row in table if row["variant"] == name]))
    ]
    return found


def growth(table: Sequence[dict[str, Any]]) -> float:
    """Exponent of the cost of a crystal in its pairs: slope of the least-squares line of the logarithms.

    Args:
        table: rows with "pairs a crystal" and "crystals/s".

    Returns:
        The slope; NaN for fewer than two rows.
    """
    if len(table) < 2:
        return math.nan
    pairs = np.log([row["pairs a crystal"] for row in table])
    return float(np.polyfit(pairs, [-math.log(row["crystals/s"].median) for row in table], 1)[0])


def batch_size(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 10,
    sizes: Sequence[int] = (150, 300, 600, 1200, 2400, 4800),
    supercell_sites: int = 50,
    variants: Sequence[str] = COMPARED,
) -> Measured:
    """A training step against the number of sites of a batch."""
    dataset = load_dataset(data).to(device)
    found, table = Measured(), []
    for size in sizes:
        batches = first_batches(dataset, min(rounds, BATCHES), size, seed)
        bench = compare(batches, programs(variants, seed, supercell_sites, device), "learn", rounds, 2, device)
        found.keep(bench.timings, size=size)
        found.notes.append(f"{size} sites: {about(dataset, batches, bench, supercell_sites)}")
        table += [{"sites of a batch": size} | row for row in bench.rows("step")]
        gc.collect()
    found.tables = [Table(table)]
    return found
