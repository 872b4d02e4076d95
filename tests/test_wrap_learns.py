"""A wrapped model learns something useful: training without labels improves a linear probe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GINConv, MeanAggregation

from pyg_dim import record, wrap
from pyg_dim.losses import JS_BASELINE

TRAIN, TEST, LABELS, STEPS = 600, 300, 100, 100
PARTNER = torch.tensor([[1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]])


def bonded_graphs(count: int, seed: int) -> list[Data]:
    """The class says which of four kinds of nodes bond: neither structure nor features alone tell it."""
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
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            GINConv(nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 32))) for width in (8, 32)
        )
        self.readout = MeanAggregation()

    def forward(self, batch):
        h = [batch.x]
        for conv in self.convs:
            h.append(conv(h[-1], batch.edge_index).relu())
        return self.readout(torch.cat(h[1:], dim=1), batch.batch, dim_size=batch.num_graphs)


def accuracy(model, graphs, seed):
    """Mean test accuracy of a linear probe over five subsets of labels."""
    with torch.no_grad():
        z = model.eval()(Batch.from_data_list(graphs)).numpy()
    y = np.array([graph.y for graph in graphs])
    draw, scores = np.random.default_rng(seed), []
    for _ in range(5):
        rows = draw.permutation(TRAIN)[:LABELS]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(z[rows], y[rows])
        scores.append(probe.score(z[TRAIN:], y[TRAIN:]))
    return float(np.mean(scores))


def pretrain(model, graphs, noise, seed):
    """Deep InfoMax without labels; the Jensen-Shannon losses of the last ten steps by tag."""
    draw = torch.Generator().manual_seed(seed)
    wrap(model, Batch.from_data_list(graphs[:64]), noise=noise).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    logged = []
    for _ in range(STEPS):
        batch = Batch.from_data_list([graphs[k] for k in torch.randperm(len(graphs), generator=draw)[:64].tolist()])
        with record(model, batch) as tape:
            model(batch)
        losses = tape.losses(kinds=("other", "unconnected"))
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
        logged.append({tag: losses[tag].item() for tag in ("js/local", "js/global")})
    return {tag: float(np.mean([step[tag] for step in logged[-10:]])) for tag in logged[-1]}


def gain(noise, seed):
    """How much training improves the probe, and the losses it ends with."""
    graphs = bonded_graphs(TRAIN + TEST, seed)
    torch.manual_seed(seed)
    model = Net()
    before = accuracy(model, graphs, seed)
    losses = pretrain(model, graphs[:TRAIN], noise, seed)
    return accuracy(model, graphs, seed) - before, losses


@pytest.mark.parametrize("noise", ["none", "learned"])
def test_training_without_labels_improves_a_linear_probe(noise):
    # Over twelve seeds the gain was 0.05 to 0.16 without noise (mean 0.08) and 0.06 to 0.17 with it (mean 0.12).
    gains, losses = zip(*(gain(noise, seed) for seed in range(2)), strict=True)
    assert np.mean(gains) > 0.03
    for loss in losses:
        assert loss["js/local"] < JS_BASELINE
        assert loss["js/global"] < JS_BASELINE
