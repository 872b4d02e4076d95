"""Time the data layer on one core: opening a data set, batches with dense supercell graphs, the embedded data set.

Run: ``OMP_NUM_THREADS=1 python benchmarks/data_layer.py crystals.parquet``
"""

from __future__ import annotations

import argparse
import time

import torch

from pyg_dim.data import CrystalLoader, DenseSupercell, load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="prototypes", help="what load_dataset opens")
    parser.add_argument("--batch-sites", type=int, default=1200)
    parser.add_argument("--batches", type=int, default=200, help="most batches to build")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    start = time.perf_counter()
    dataset = load_dataset(arguments.source)
    print(f"open: {time.perf_counter() - start:.2f} s\n{dataset}\n{dataset.report}")

    loader = CrystalLoader(dataset, DenseSupercell(), arguments.batch_sites)
    crystals = edges = batches = 0
    start = time.perf_counter()
    for batch in loader:
        crystals += batch.num_graphs
        edges += batch.edge_dist.numel()
        batches += 1
        if batches == arguments.batches:
            break
    seconds = time.perf_counter() - start
    print(
        f"batches: {batches} of up to {arguments.batch_sites} sites, {edges / batches:.0f} edges each, "
        f"{1e3 * seconds / batches:.1f} ms each, {crystals / seconds:.0f} crystals/s"
    )


if __name__ == "__main__":
    main()
