"""What the tolerance of Site-Net's symmetry classes saves, and how far it moves representations.

``OMP_NUM_THREADS=1 python benchmarks/tolerance.py --data mp36k.parquet`` prints the Markdown table of docs/models.md
for a Site-Net with random parameters, or for that of ``--checkpoint``. Representations in float64, each tolerance
beside the plain path on the distances as they are. Changes are given as shares of the spread of the representations,
the root mean square of their distances from their mean; the first row is the plain path in float32.
"""

from __future__ import annotations

import argparse
from copy import copy
from typing import Any

import torch
from torch import Tensor

from pyg_dim.data import CrystalLoader, DenseSupercell, SymmetryClasses, load_dataset
from pyg_dim.models import SiteNet
from pyg_dim.training.checkpoints import load_encoder

TOLERANCES = tuple(10.0**-n for n in range(6, 0, -1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="prototypes", help="crystals, as for train.py")
    parser.add_argument("--crystals", type=int, default=2000, help="how many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of crystals and random parameters")
    parser.add_argument("--checkpoint", help="a trained Site-Net")
    parser.add_argument("--batch-sites", type=int, default=1200)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    encoder = load_encoder(args.checkpoint) if args.checkpoint else SiteNet()
    single = encoder.eval()
    double = copy_in_double(single)
    dataset = load_dataset(args.data)
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))[: args.crystals]
    graph = DenseSupercell(encoder.config["supercell_sites"])
    loader = CrystalLoader(dataset.subset(drawn), lambda batch: batch, args.batch_sites, shuffle=False)

    plain: list[Tensor] = []
    rounded: list[Tensor] = []
    changed: dict[float, list[Tensor]] = {tolerance: [] for tolerance in TOLERANCES}
    moved = dict.fromkeys(TOLERANCES, 0.0)
    sites, pairs = dict.fromkeys(TOLERANCES, 0), dict.fromkeys(TOLERANCES, 0)
    all_sites = all_pairs = 0
    with torch.no_grad():
        for batch in loader:
            rounded.append(single(graph(copy(batch))).double())
            batch = graph(in_double(batch))
            all_sites, all_pairs = all_sites + batch.z.numel(), all_pairs + batch.edge_dist.numel()
            plain.append(double(copy(batch)))
            for tolerance in TOLERANCES:
                few = SymmetryClasses(copy, tolerance, snap=True)(batch)
                sites[tolerance] += few.site_count.numel()
                pairs[tolerance] += few.pair_dist.numel()
                moved[tolerance] = max(moved[tolerance], float((few.edge_dist - batch.edge_dist).abs().max()))
                changed[tolerance].append(double(few))

    expected = torch.cat(plain)
    spread = (expected - expected.mean(0)).square().sum(1).mean().sqrt()

    def row(name: str, vectors: list[Tensor], *cells: str) -> None:
        change = (torch.cat(vectors) - expected).norm(dim=1) / spread
        shown = (change.median(), change.quantile(0.99), change.max())
        print("|", " | ".join([name, *cells, *(f"{float(value):.1e}" for value in shown)]), "|")

    print(f"{len(expected)} crystals, {all_sites} sites, {all_pairs} pairs\n")
    print("| tolerance, Å | sites, times fewer | pairs, times fewer | largest move, Å | median | 99 % | largest |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    row("none, float32", rounded, "1", "1", "")
    for tolerance in TOLERANCES:
        fewer = (f"{all_sites / sites[tolerance]:.2f}", f"{all_pairs / pairs[tolerance]:.2f}")
        row(f"{tolerance:.0e}", changed[tolerance], *fewer, f"{moved[tolerance]:.0e}")


def in_double(batch: Any) -> Any:
    """A copy of a batch in 64 bits."""
    return copy(batch).apply(lambda values: values.double() if values.is_floating_point() else values)


def copy_in_double(encoder: Any) -> Any:
    """The same encoder in 64 bits."""
    double = type(encoder)(**encoder.config).double().eval()
    double.load_state_dict(encoder.state_dict())
    return double


if __name__ == "__main__":
    main()
