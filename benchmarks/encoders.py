"""Every encoder: a supervised step against its published program, with Deep InfoMax, while recording; embedding.

The published programs are matgl (``pip install matgl==4.1.2``; left out where it is not installed) for MEGNet, and for
CGCNN, ALIGNN and Roost their formulas as they stand, in ``published.py``, checked to give the same numbers as ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import published
import torch
from alternate import Variant, alternate, rows
from memory import peak_memory
from results import Measured, Table
from torch import Tensor, nn

from pyg_dim import record
from pyg_dim.data import CrystalDataset, CrystalLoader, load_dataset
from pyg_dim.level import Level
from pyg_dim.models import MODELS, build
from pyg_dim.models.batch_norm import BatchNorm
from pyg_dim.objectives.deep_infomax import DeepInfoMax

PUBLISHED = "published program"
SUPERVISED = "supervised"
WITH_KERNELS = ("roost", "sitenet")
"""Encoders with kernels of their own; of the others kernels serve the critics alone."""
SMALL_ALIGNN = {"alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 64}


def models(
    data: str = "prototypes",
    device: str = "cpu",
    seed: int = 0,
    rounds: int = 15,
    models: Sequence[str] = tuple(sorted(MODELS)),
    crystals: int = 128,
    small_alignn: bool = False,
    plain: bool = False,
) -> Measured:
    """A training step of every encoder, supervised and with Deep InfoMax, and embedding.

    The first crystals of the data are one batch. ``small_alignn``: 2 + 2 layers of width 64 instead of 4 + 4 of 256;
    ``plain``: compute also what symmetry makes equal.
    """
    if unknown := [name for name in models if name not in MODELS]:
        raise ValueError(f"unknown models {', '.join(unknown)}; known: {', '.join(sorted(MODELS))}")
    dataset = load_dataset(data)
    dataset = dataset.subset(torch.arange(min(crystals, len(dataset)))).to(device)
    found = Measured()
    for name in models:
        options: dict[str, Any] = {"pad": True} if name == "cgcnn" else {}
        if name == "alignn" and small_alignn:
            options |= SMALL_ALIGNN
        if name in ("alignn", "megnet") and plain:
            options |= {"tolerance": None}
        torch.manual_seed(seed)
        variants, note = programs(name, options, dataset, device)
        timings = alternate(variants, rounds, warmup=3, device=device)
        table = rows(timings, (PUBLISHED, SUPERVISED), call="batch")
        for row in table:
            row["most memory, MB"] = peak_memory(partial(variants[row["variant"]], 0), device) / 1e6
        found.tables.append(Table(table, f"**{name}**: {note}"))
        found.keep(timings, model=name)
    return found


def programs(
    name: str, options: dict[str, Any], dataset: CrystalDataset, device: str
) -> tuple[dict[str, Variant], str]:
    """Every way to take a training step with one encoder, and to embed; all of them work on the same crystals.

    Args:
        name: of the encoder.
        options: of its constructor.
        dataset: its crystals are the batch, on the device.
        device: where.

    Returns:
        (variants by name, a sentence about encoder and crystals).
    """
    encoder = build(name, **options).to(device)
    batch = next(iter(CrystalLoader(dataset, encoder.graph, batch_sites=10**9, shuffle=False)))
    labels = torch.randn(batch.num_graphs, 1, device=device)
    head = nn.Linear(encoder.channels, 1).to(device)
    objective = DeepInfoMax(encoder)
    levels = {id(p) for m in encoder.modules() if isinstance(m, Level) for p in m.parameters()}
    own = [*(p for p in encoder.parameters() if id(p) not in levels), *head.parameters()]
    supervised, pretraining = torch.optim.Adam(own), torch.optim.Adam(objective.parameters())

    def learn(predict: Callable[[], Tensor]) -> Variant:
        def step(number: int) -> int:
            supervised.zero_grad()
            (predict() - labels).square().mean().backward()
            supervised.step()
            return batch.num_graphs

        return step

    def recorded() -> Tensor:
        with record(encoder, batch):
            return head(encoder(batch))

    def pretrain(number: int) -> int:
        pretraining.zero_grad()
        objective(batch)["total"].backward()
        pretraining.step()
        return batch.num_graphs

    @torch.no_grad()
    def embed(number: int) -> int:
        encoder.eval()
        encoder(batch)
        encoder.train()
        return batch.num_graphs

    def switched(call: Variant, enabled: bool) -> Variant:
        def run(number: int) -> float:
            encoder.set_kernels(enabled)
            return call(number)

        return run

    found = {PUBLISHED: learn(peer)} if (peer := published_program(name, encoder, batch, head)) else {}
    if name == "megnet" and find_spec("matgl") is not None:
        found[PUBLISHED] = matgl_step(dataset, labels)
    calls = {SUPERVISED: learn(lambda: head(encoder(batch))), "Deep InfoMax": pretrain, "embedding": embed}
    found |= {title: switched(call, False) for title, call in calls.items()}
    found["supervised, recorded"] = switched(learn(recorded), False)
    served = calls if name in WITH_KERNELS else {"Deep InfoMax": pretrain}
    found |= {f"{title}, kernels": switched(call, True) for title, call in served.items()}

    width = [f"{batch.z.numel() / len(dataset):.1f} sites", f"{batch.edge_index.size(1) / len(dataset):.0f} edges"]
    width += [f"{batch.line_cos.numel() / len(dataset):.0f} angles"] if "line_cos" in batch else []
    count = sum(p.numel() for p in own) - sum(p.numel() for p in head.parameters())
    return found, f"{count} parameters without levels; {len(dataset)} crystals of {', '.join(width)}"


def published_program(name: str, encoder: Any, batch: Any, head: nn.Module) -> Callable[[], Tensor] | None:
    """The plain program for the same parameters, after a look at whether it gives the same numbers."""
    if name == "cgcnn":
        edge = encoder.expand(batch.edge_dist)
        run = lambda: published.cgcnn(encoder, batch, edge)  # noqa: E731
    elif name == "alignn":
        width = encoder.output.in_features
        unused = nn.ModuleList([BatchNorm(width), BatchNorm(width)]).to(batch.pos.device)
        run = lambda: published.alignn(encoder, batch, unused)  # noqa: E731
    elif name == "roost":
        run = lambda: published.roost(encoder, batch)  # noqa: E731
    else:
        return None
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(run(), encoder(batch), rtol=1e-3, atol=1e-3)
    encoder.train()
    return lambda: head(run())


def matgl_step(dataset: CrystalDataset, labels: Tensor) -> Variant:
    """MEGNet of matgl, with its defaults but for the cutoff, on graphs made and collated before."""
    from matgl.config import DEFAULT_ELEMENTS
    from matgl.ext.pymatgen import Structure2Graph
    from matgl.graph.data import collate_fn_graph
    from matgl.models import MEGNet
    from pymatgen.core import Structure

    host, device = dataset.to("cpu"), labels.device
    convert = Structure2Graph(element_types=DEFAULT_ELEMENTS, cutoff=4.0)
    items = []
    for row in range(len(host)):
        sites = slice(int(host.ptr[row]), int(host.ptr[row + 1]))
        structure = Structure(
            host.cell[row].double().numpy(),
            host.z[sites].tolist(),
            host.pos[sites].double().numpy(),
            coords_are_cartesian=True,
        )
        graph, lattice, state = convert.get_graph(structure)
        graph.pos = graph.frac_coords @ lattice[0]
        graph.pbc_offshift = graph.pbc_offset @ lattice[0]
        items.append((graph, lattice, torch.tensor(state), {"y": 0.0}))
    graph, _, state, _ = collate_fn_graph(items)
    graph, state = graph.to(device), state.to(device)
    model = MEGNet(element_types=DEFAULT_ELEMENTS, cutoff=4.0, niters_set2set=2).to(device)
    optimiser = torch.optim.Adam(model.parameters())

    def step(number: int) -> int:
        optimiser.zero_grad()
        (model(g=graph, state_attr=state) - labels[:, 0]).square().mean().backward()
        optimiser.step()
        return len(host)

    return step
