"""Linear probes of a GIN that learned without labels: wrapped Deep InfoMax beside two other graph objectives.

``python benchmarks/own_model.py`` prints the table of docs/own_model.md. Every method starts from the same parameters,
sees the same graphs in batches of 64 for the same number of steps with the same optimiser, and is probed on the same
labels. The graphs of the test are in no training. Spreads are over seeds; "won - lost" counts seeds in which the probe
with 100 labels was better or worse than on the untrained model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, MeanAggregation, SumAggregation
from torch_geometric.nn.models import DeepGraphInfomax
from torch_geometric.utils import degree

from pyg_dim import record, wrap

PARTNER = torch.tensor([[1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])
TRAIN, TEST, LABELS, SUBSETS = 1000, 500, (50, 100, 200), 5


def bonded_graphs(count: int, seed: int) -> list[Data]:
    """Graphs of four kinds of nodes; the class says which kind most bonds of each kind go to."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for k in range(count):
        size = int(torch.randint(12, 37, (), generator=generator))
        kind = torch.multinomial(0.3 + torch.rand(4, generator=generator), size, True, generator=generator)
        favoured = PARTNER[k % 3][kind][:, None] == kind
        pair = torch.where(favoured, 0.85, 0.05).triu(1).flatten().multinomial(int(1.2 * size), generator=generator)
        bonds = torch.stack([pair // size, pair % size])
        shown = F.one_hot(kind, 4) + 0.5 * torch.randn(size, 4, generator=generator)
        x = torch.cat([shown, torch.randn(size, 4, generator=generator)], dim=1)
        graphs.append(Data(x=x, edge_index=torch.cat([bonds, bonds.flip(0)], dim=1), y=k % 3))
    return graphs


class Net(nn.Module):
    """Two GIN layers and a readout of the vectors of both."""

    def __init__(self, readout: type[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            GINConv(nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 32))) for width in (8, 32)
        )
        self.readout = readout()

    def nodes(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[N, 64] vectors of the nodes."""
        layers = []
        for conv in self.convs:
            x = conv(x, edge_index).relu()
            layers.append(x)
        return torch.cat(layers, dim=1)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[B, 64] vectors of the graphs."""
        return self.readout(self.nodes(x, edge_index), batch)


Loss = Callable[[Batch], Tensor]


def deep_infomax(
    model: Net, first: Batch, kinds: tuple[str, ...] = ("other",), **options: str
) -> tuple[nn.Module, Loss]:
    wrap(model, first.x, first.edge_index, first.batch, **{"noise": "learned", **options})

    def loss(batch: Batch) -> Tensor:
        with record(model, batch) as tape:
            model(batch.x, batch.edge_index, batch.batch)
        return tape.loss(kinds=kinds)

    return model, loss


class NodeVectors(nn.Module):
    """The node vectors of a model as a module, which DeepGraphInfomax asks for."""

    def __init__(self, model: Net) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[N, 64] vectors of the nodes."""
        return self.model.nodes(x, edge_index)


def deep_graph_infomax(model: Net, first: Batch) -> tuple[nn.Module, Loss]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = DeepGraphInfomax(
        64,
        NodeVectors(model),
        summary=lambda z, *_: z.mean(dim=0).sigmoid(),
        corruption=lambda x, edge_index: (x[torch.randperm(x.size(0))], edge_index),
    )
    model.load_state_dict(before)  # the constructor draws new parameters
    return learner, lambda batch: learner.loss(*learner(batch.x, batch.edge_index))


def infograph_style(model: Net, first: Batch) -> tuple[nn.Module, Loss]:
    local, whole = (nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(2))

    def loss(batch: Batch) -> Tensor:
        h = model.nodes(batch.x, batch.edge_index)
        score = local(h) @ whole(model.readout(h, batch.batch)).T
        own = F.one_hot(batch.batch, batch.num_graphs).bool()
        return F.softplus(-score[own]).mean() + F.softplus(score[~own]).mean()

    return nn.ModuleList([model, local, whole]), loss


METHODS: dict[str, Callable[[Net, Batch], tuple[nn.Module, Loss]]] = {
    "DIM, other": deep_infomax,
    "DIM, other + unconnected": partial(deep_infomax, kinds=("other", "unconnected")),
    "DIM, other, conditional noise": partial(deep_infomax, noise="conditional"),
    "DIM, other, no noise": partial(deep_infomax, noise="none"),
    "DIM, other, InfoNCE": partial(deep_infomax, estimator="info_nce"),
    "DIM, other, bilinear critic": partial(deep_infomax, critic="bilinear"),
    "DeepGraphInfomax of PyG": deep_graph_infomax,
    "InfoGraph-style": infograph_style,
}


def train(
    model: Net, graphs: list[Data], method: str, steps: int, rate: float, seed: int
) -> tuple[float, float, float]:
    """Train; mean loss of the first and of the last 20 steps, milliseconds a step."""
    torch.manual_seed(1000 + seed)
    learner, loss_of = METHODS[method](model, Batch.from_data_list(graphs[:64]))
    optimiser = torch.optim.Adam(learner.train().parameters(), lr=rate)
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    start = time.perf_counter()
    while len(losses) < steps:
        for batch in DataLoader(graphs, 64, shuffle=True, drop_last=True, generator=order):
            loss = loss_of(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    milliseconds = 1e3 * (time.perf_counter() - start) / steps
    return float(np.mean(losses[:20])), float(np.mean(losses[-20:])), milliseconds


@torch.no_grad()
def vectors(model: Net, graphs: list[Data]) -> np.ndarray:
    batch = Batch.from_data_list(graphs)
    return model.eval()(batch.x, batch.edge_index, batch.batch).numpy()


def plain_averages(graphs: list[Data]) -> np.ndarray:
    """Size, mean degree, its spread, and mean and spread of each feature: no structure and features together."""
    rows = []
    for graph in graphs:
        degrees = degree(graph.edge_index[1], graph.num_nodes)
        numbers = [torch.tensor([graph.num_nodes, degrees.mean(), degrees.std()]), graph.x.mean(0), graph.x.std(0)]
        rows.append(torch.cat(numbers).numpy())
    return np.stack(rows)


def accuracy(train_x: np.ndarray, test_x: np.ndarray, graphs: list[Data], seed: int) -> list[float]:
    """Test accuracy with 50, 100 and 200 labels, the mean over random subsets of labels."""
    y = np.array([graph.y for graph in graphs])
    draw, found = np.random.default_rng(seed), []
    for labels in LABELS:
        scores = []
        for _ in range(SUBSETS):
            rows = draw.permutation(TRAIN)[:labels]
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train_x[rows], y[rows])
            scores.append(probe.score(test_x, y[TRAIN:]))
        found.append(float(np.mean(scores)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="seeds of data, parameters and order")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--readout", choices=("mean", "sum"), default="mean")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    args = parser.parse_args(argv)
    readout = {"mean": MeanAggregation, "sum": SumAggregation}[args.readout]

    names = ["plain averages", "untrained", *args.methods]
    scores: dict[str, list[list[float]]] = {name: [] for name in names}
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in args.methods}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        graphs = bonded_graphs(TRAIN + TEST, seed)
        for name in names:
            if name == "plain averages":
                x = plain_averages(graphs)
            else:
                torch.manual_seed(seed)
                model = Net(readout)
                if name in METHODS:
                    runs[name].append(train(model, graphs[:TRAIN], name, args.steps, args.lr, seed))
                x = vectors(model, graphs)
            scores[name].append(accuracy(x[:TRAIN], x[TRAIN:], graphs, seed))

    run = f"{args.steps} steps, learning rate {args.lr:g}, {args.seeds} seeds from {args.first_seed}"
    print(f"{args.readout} readout, {run}\n")
    print(
        "| representation |" + "".join(f" {labels} labels |" for labels in LABELS) + " won - lost | loss | ms a step |"
    )
    print("| --- |" + " ---: |" * (len(LABELS) + 3))
    untrained = np.array(scores["untrained"])[:, LABELS.index(100)]
    for name, found in scores.items():
        x = np.array(found)
        cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(x.mean(0), x.std(0), strict=True)]
        at_100 = x[:, LABELS.index(100)]
        cells.append("" if name == "untrained" else f"{(at_100 > untrained).sum()} - {(at_100 < untrained).sum()}")
        if name in runs:
            first, last, milliseconds = np.median(np.array(runs[name]), axis=0)
            cells += [f"{first:.3f} → {last:.3f}", f"{milliseconds:.1f}"]
        else:
            cells += ["", ""]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
