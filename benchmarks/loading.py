"""Whether batches are built faster than they are learned from, for each encoder."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from alternate import Spread, alternate
from programs import endless, fastest, first_batches, optimiser_of
from results import Measured, Table

from pyg_dim.data import CrystalBatch, CrystalLoader, load_dataset
from pyg_dim.models import MODELS, build
from pyg_dim.objectives.deep_infomax import DeepInfoMax


def loader(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 10,
    models: Sequence[str] = tuple(sorted(MODELS)),
    batch_sites: int = 1200,
) -> Measured:
    """Building a batch with its graph and classes of equals, against the training step of Deep InfoMax.

    The loader's thread builds the next batch within a step: the step waits for it where its share is above one.
    """
    dataset = load_dataset(data).to(device)
    found, table = Measured(), []
    for name in models:
        torch.manual_seed(seed)
        encoder = build(name).to(device)
        fastest(encoder)
        objective = DeepInfoMax(encoder)
        optimiser = optimiser_of(objective)
        rows_of = [batch.row.cpu() for batch in first_batches(dataset, min(rounds, 5), batch_sites, seed)]
        ready = [encoder.graph(dataset.gather(rows)) for rows in rows_of]
        queue = endless(CrystalLoader(dataset, encoder.graph, batch_sites, seed=seed))

        def learn(batch: CrystalBatch, objective: Any = objective, optimiser: Any = optimiser) -> int:
            optimiser.zero_grad()
            objective(batch)["total"].backward()
            optimiser.step()
            return batch.num_graphs

        variants = {
            "step": lambda number, learn=learn, ready=ready: learn(copy(ready[number % len(ready)])),
            "building": lambda number, graph=encoder.graph, rows_of=rows_of: (
                graph(dataset.gather(rows_of[number % len(rows_of)])).num_graphs
            ),
            "step with the loader": lambda number, learn=learn, queue=queue: learn(next(queue)),
        }
        timings = alternate(variants, rounds, warmup=2, device=device)
        queue.close()
        found.keep(timings, model=name)
        step, building, loaded = timings.values()
        table.append(
            {
                "model": name,
                "building a batch, ms": Spread.of(1e3 * s for s in building.seconds),
                "step, ms": Spread.of(1e3 * s for s in step.seconds),
                "share of a step": Spread.of(a / b for a, b in zip(building.seconds, step.seconds, strict=True)),
                "step with the loader, ms": Spread.of(1e3 * s for s in loaded.seconds),
                "crystals/s with the loader": Spread.of(loaded.rates),
                "loader keeps up": "yes" if building.times(step).median > 1 else "no",
            }
        )
    found.tables = [Table(table)]
    return found
