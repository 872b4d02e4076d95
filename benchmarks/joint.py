"""Few labels and many graphs without: supervised training alone, and with the loss of the tape added.

``python benchmarks/joint.py`` prints the table of docs/joint.md. Both start from the same parameters and see the same
labelled batches; the graphs of the test are in no training.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from own_model import TEST, TRAIN, Net, bonded_graphs
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MeanAggregation

from pyg_dim import record, wrap


class Classifier(Net):
    """The GIN of own_model.py with a linear head for the three classes."""

    def __init__(self) -> None:
        super().__init__(MeanAggregation)
        self.head = nn.Linear(64, 3)

    def forward(self, batch: Batch) -> torch.Tensor:
        """[B, 3] logits."""
        return self.head(super().forward(batch.x, batch.edge_index, batch.batch))


def again(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader, epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def accuracies(
    graphs: list[Data], labels: int, weight: float, before: int, checkpoints: list[int], seed: int
) -> list[float]:
    """Test accuracies after each number of supervised steps.

    Args:
        graphs: those to train on, then those of the test.
        labels: how many of them are labelled.
        weight: weight of the loss of the tape; without recording where zero.
        before: steps with the loss of the tape alone that come first.
        checkpoints: numbers of supervised steps.
        seed: of the parameters and the order.
    """
    torch.manual_seed(seed)
    model = Classifier()
    if weight or before:
        wrap(model, Batch.from_data_list(graphs[:64]), noise="learned")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    labelled, every = (
        again(DataLoader(some, size, shuffle=True, generator=torch.Generator().manual_seed(seed)))
        for some, size in ((graphs[:labels], 32), (graphs[:TRAIN], 64))
    )
    test, found = Batch.from_data_list(graphs[TRAIN:]), []
    for step in range(1 - before, checkpoints[-1] + 1):
        model.train()
        loss = torch.zeros(())
        if step > 0:
            batch = next(labelled)
            loss = F.cross_entropy(model(batch), batch.y)
        if weight or step <= 0:
            unlabelled = next(every)
            with record(model, unlabelled) as tape:
                model(unlabelled)
            loss = loss + (weight if step > 0 else 1.0) * tape.loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in checkpoints:
            with torch.no_grad():
                found.append((model.eval()(test).argmax(dim=1) == test.y).float().mean().item())
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of data, parameters and order")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labels", type=int, nargs="*", default=[30, 100])
    parser.add_argument("--weights", type=float, nargs="*", default=[0.1, 1.0])
    parser.add_argument("--before", type=int, default=300, help="steps of pre-training in the last row")
    parser.add_argument("--steps", type=int, nargs="*", default=[100, 300, 600], help="when to test")
    args = parser.parse_args(argv)

    ways = {"supervised alone": (0.0, 0)}
    ways |= {f"joint, weight {weight:g}": (weight, 0) for weight in args.weights}
    ways |= {f"{args.before} steps without labels, then supervised alone": (0.0, args.before)}
    print("| labels | training |" + "".join(f" {steps} steps |" for steps in args.steps) + " won - lost |")
    print("| ---: | --- |" + " ---: |" * (len(args.steps) + 1))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    sets = {seed: bonded_graphs(TRAIN + TEST, seed) for seed in seeds}
    for labels in args.labels:
        alone = None
        for name, (weight, before) in ways.items():
            found = [accuracies(graphs, labels, weight, before, args.steps, seed) for seed, graphs in sets.items()]
            x = np.array(found)
            cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(x.mean(0), x.std(0), strict=True)]
            if alone is None:
                alone = x[:, -1]
                cells.append("")
            else:
                cells.append(f"{(x[:, -1] > alone).sum()} - {(x[:, -1] < alone).sum()}")
            print(f"| {labels} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
