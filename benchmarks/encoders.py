"""Time a training step of every encoder: against its published program, with Deep InfoMax, and while recording.

``python benchmarks/encoders.py --data matbench_phonons.json.gz`` takes the first crystals of the data as a batch, runs
all programs of one encoder in turn, step by step, in one process, and prints the median time of each and the median of
the ratios within a round, which holds where the speed of the machine drifts. The published programs are matgl
(``pip install matgl==4.1.2``; left out where it is not installed) for MEGNet, and for CGCNN and ALIGNN their formulas
as they stand, in ``published.py``, checked to give the same numbers as ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import published
import torch
from torch import Tensor, nn

from pyg_dim import record
from pyg_dim.data import CrystalLoader, load_dataset
from pyg_dim.level import Level
from pyg_dim.models import MODELS, build
from pyg_dim.models.batch_norm import BatchNorm
from pyg_dim.objectives.deep_infomax import DeepInfoMax

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="prototypes", help="crystals, as for train.py")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--crystals", type=int, default=128, help="crystals of the batch")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each program")
    parser.add_argument("--small-alignn", action="store_true", help="2 + 2 layers of width 64 instead of 4 + 4 of 256")
    parser.add_argument("--plain", action="store_true", help="compute also what symmetry makes equal")
    args = parser.parse_args()

    dataset = load_dataset(args.data)
    dataset = dataset.subset(torch.arange(min(args.crystals, len(dataset))))
    print(f"{len(dataset)} crystals, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    for name in args.models:
        options: dict[str, Any] = {"pad": True} if name == "cgcnn" else {}
        if name == "alignn" and args.small_alignn:
            options |= {"alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 64}
        if name in ("alignn", "megnet") and args.plain:
            options |= {"tolerance": None}
        show(name, dataset, time_all(programs(name, options, dataset), args.rounds))


def programs(name: str, options: dict[str, Any], dataset: Any) -> dict[str, Step]:
    """Every way to take a training step with one encoder; all of them work on the same crystals."""
    torch.manual_seed(0)
    encoder = build(name, **options)
    batch = next(iter(CrystalLoader(dataset, encoder.graph, batch_sites=10**9, shuffle=False)))
    labels = torch.randn(batch.num_graphs, 1)
    head = nn.Linear(encoder.channels, 1)
    objective = DeepInfoMax(encoder)
    levels = {id(p) for m in encoder.modules() if isinstance(m, Level) for p in m.parameters()}
    own = [*(p for p in encoder.parameters() if id(p) not in levels), *head.parameters()]
    supervised, pretraining = torch.optim.Adam(own), torch.optim.Adam(objective.parameters())
    per_crystal = f"{batch.z.numel() / len(dataset):.1f} sites, {batch.edge_dist.numel() / len(dataset):.0f} edges"
    if "line_cos" in batch:
        per_crystal += f", {batch.line_cos.numel() / len(dataset):.0f} angles"
    count = sum(p.numel() for p in own) - sum(p.numel() for p in head.parameters())
    print(f"\n{name}: {count} parameters without levels; a crystal has {per_crystal}")

    def learn(predict: Callable[[], Tensor]) -> Step:
        def step() -> None:
            supervised.zero_grad()
            (predict() - labels).square().mean().backward()
            supervised.step()

        return step

    def recorded() -> Tensor:
        with record(encoder, batch):
            return head(encoder(batch))

    def pretrain() -> None:
        pretraining.zero_grad()
        objective(batch)["total"].backward()
        pretraining.step()

    def compiled(step: Step, enabled: bool) -> Step:
        def run() -> None:
            encoder.set_compile(enabled)
            step()

        return run

    plain = learn(lambda: head(encoder(batch)))
    found = {"published program": learn(peer)} if (peer := published_program(name, encoder, batch, head)) else {}
    if name == "megnet" and find_spec("matgl") is not None:
        found["published program"] = matgl_step(dataset, labels)
    found["supervised"] = compiled(plain, False)
    found["supervised, compiled"] = compiled(plain, True)
    found["supervised, recorded"] = compiled(learn(recorded), False)
    found["Deep InfoMax"] = compiled(pretrain, False)
    found["Deep InfoMax, compiled"] = compiled(pretrain, True)
    return found


def published_program(name: str, encoder: Any, batch: Any, head: nn.Module) -> Callable[[], Tensor] | None:
    """The plain program for the same parameters, after a look at whether it gives the same numbers."""
    if name == "cgcnn":
        edge = encoder.expand(batch.edge_dist)
        run = lambda: published.cgcnn(encoder, batch, edge)  # noqa: E731
    elif name == "alignn":
        width = encoder.output.in_features
        unused = nn.ModuleList([BatchNorm(width), BatchNorm(width)])
        run = lambda: published.alignn(encoder, batch, unused)  # noqa: E731
    else:
        return None
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(run(), encoder(batch), rtol=1e-3, atol=1e-3)
    encoder.train()
    return lambda: head(run())


def matgl_step(dataset: Any, labels: Tensor) -> Step:
    """MEGNet of matgl, with its defaults but for the cutoff, on graphs made and collated before."""
    from matgl.config import DEFAULT_ELEMENTS
    from matgl.ext.pymatgen import Structure2Graph
    from matgl.graph.data import collate_fn_graph
    from matgl.models import MEGNet
    from pymatgen.core import Structure

    convert = Structure2Graph(element_types=DEFAULT_ELEMENTS, cutoff=4.0)
    items = []
    for row in range(len(dataset)):
        sites = slice(int(dataset.ptr[row]), int(dataset.ptr[row + 1]))
        structure = Structure(
            dataset.cell[row].double().numpy(),
            dataset.z[sites].tolist(),
            dataset.pos[sites].double().numpy(),
            coords_are_cartesian=True,
        )
        graph, lattice, state = convert.get_graph(structure)
        graph.pos = graph.frac_coords @ lattice[0]
        graph.pbc_offshift = graph.pbc_offset @ lattice[0]
        items.append((graph, lattice, torch.tensor(state), {"y": float(labels[row])}))
    graph, _, state, _ = collate_fn_graph(items)
    model = MEGNet(element_types=DEFAULT_ELEMENTS, cutoff=4.0, niters_set2set=2)
    optimiser = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimiser.zero_grad()
        (model(g=graph, state_attr=state) - labels[:, 0]).square().mean().backward()
        optimiser.step()

    count = sum(p.numel() for p in model.parameters())
    print(f"matgl: {count} parameters, {graph.edge_index.size(1) / len(dataset):.0f} edges a crystal")
    return step


def time_all(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round, after a few rounds that are not timed."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-3, rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 0:
                taken[name].append(time.perf_counter() - start)
    return taken


def show(name: str, dataset: Any, taken: dict[str, list[float]]) -> None:
    """Print a table; ratios are of speeds, to the published program and to the supervised step."""
    first = "published program" if "published program" in taken else None
    print(f"| {name} | ms a step | crystals/s | times published | times supervised |\n|---|---:|---:|---:|---:|")
    for program, seconds in taken.items():
        ratios = [
            statistics.median(a / b for a, b in zip(taken[base], seconds, strict=True)) if base else None
            for base in (first, "supervised")
        ]
        middle = statistics.median(seconds)
        cells = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        print(f"| {program} | {middle * 1e3:.0f} | {len(dataset) / middle:.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
