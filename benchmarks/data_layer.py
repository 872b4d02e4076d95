"""Time the data layer on one core: opening, batches, neighbour lists against other programs, modes of the loader.

Run: ``OMP_NUM_THREADS=1 python benchmarks/data_layer.py crystals.parquet``. Ways to do the same thing take turns, and
processor time is what counts, so that ratios hold on a machine that is shared. matgl is compared where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from pyg_dim.data import (
    CrystalBatch,
    CrystalDataset,
    CrystalLoader,
    DenseSupercell,
    GraphCache,
    NearestNeighbors,
    RadiusGraph,
    StreamingLoader,
    load_dataset,
)
from pyg_dim.models import build
from pyg_dim.objectives.deep_infomax import DeepInfoMax

ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="prototypes", help="what load_dataset opens")
    parser.add_argument("--batch-sites", type=int, default=1200)
    parser.add_argument("--batches", type=int, default=200, help="most batches of the first part; 0 for a whole epoch")
    parser.add_argument("--crystals", type=int, default=2000, help="crystals of the other parts; 0 leaves these out")
    parser.add_argument("--cutoff", type=float, default=2.9, help="of the radius lists, in angstrom")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    start, before = time.perf_counter(), peak()
    dataset = load_dataset(arguments.source)
    print(f"open: {time.perf_counter() - start:.2f} s, peak memory {before:.0f} -> {peak():.0f} MB")
    print(f"{dataset}: {megabytes(dataset):.0f} MB of arrays\n{dataset.report}")
    time_batches(dataset, arguments.batch_sites, arguments.batches)
    if arguments.crystals:
        drawn = np.random.default_rng(0).permutation(len(dataset))[: arguments.crystals]
        sample = dataset.subset(torch.from_numpy(drawn))
        compare_graphs(sample, arguments.batch_sites, arguments.cutoff)
        compare_modes(sample, arguments.batch_sites)


def peak() -> float:
    """Most memory that the process has used so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def megabytes(dataset: CrystalDataset) -> float:
    tensors = (dataset.z, dataset.pos, dataset.ptr, dataset.cell, dataset.oxidation, *dataset.labels.values())
    return (sum(tensor.nbytes for tensor in tensors) + dataset.ids.nbytes) / 1e6


def time_batches(dataset: CrystalDataset, batch_sites: int, most: int) -> None:
    loader = CrystalLoader(dataset, DenseSupercell(), batch_sites)
    crystals = edges = batches = 0
    start, used = time.perf_counter(), time.process_time()
    for batch in loader:
        crystals += batch.num_graphs
        edges += batch.edge_dist.numel()
        batches += 1
        if batches == most:
            break
    seconds, used = time.perf_counter() - start, time.process_time() - used
    print(
        f"dense supercells: {batches} of {len(loader)} batches of up to {batch_sites} sites in {seconds:.1f} s "
        f"({used:.1f} s of processor time), {edges / batches:.0f} edges each, {1e3 * seconds / batches:.1f} ms each, "
        f"{crystals / seconds:.0f} crystals/s, peak memory {peak():.0f} MB"
    )


def compare(title: str, ways: dict[str, Callable[[], tuple[int, int]]]) -> None:
    """Let the ways take turns; each says how many crystals and edges it made. Ratios are to the first."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    width: dict[str, float] = {}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            crystals, edges = way()
            rates[name].append(crystals / (time.process_time() - start))
            width[name] = edges / crystals
    print(f"\n{title}")
    first = next(iter(ways))
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(rates[first], rates[name], strict=True))
        print(
            f"  {name}: {max(rates[name]):.0f} crystals/s at best, {width[name]:.0f} edges each; "
            f"the first is {ratio:.2f} times as fast"
        )


def compare_graphs(dataset: CrystalDataset, batch_sites: int, cutoff: float) -> None:
    from pymatgen.core import Lattice, Structure
    from pymatgen.optimization.neighbors import find_points_in_spheres

    loader = CrystalLoader(dataset, lambda batch: batch, batch_sites)
    batches = list(loader)
    structures = [
        Structure(
            Lattice(crystal.cell[0].double().numpy()),
            crystal.z.tolist(),
            crystal.pos.double().numpy(),
            coords_are_cartesian=True,
        )
        for crystal in (dataset[row] for row in range(len(dataset)))
    ]
    arrays = [(np.ascontiguousarray(s.cart_coords), np.ascontiguousarray(s.lattice.matrix)) for s in structures]

    def ours(graph: Callable[[CrystalBatch], CrystalBatch]) -> Callable[[], tuple[int, int]]:
        def run() -> tuple[int, int]:
            return len(dataset), sum(graph(batch).edge_dist.numel() for batch in batches)

        return run

    def in_python() -> tuple[int, int]:
        # What CGCNN's program does for each crystal: all neighbours as objects, sorted, the first twelve.
        nearest = [
            [sorted(all_, key=lambda x: x.nn_distance)[:12] for all_ in structure.get_all_neighbors(8.0)]
            for structure in structures[:50]
        ]
        return len(nearest), sum(len(site) for crystal in nearest for site in crystal)

    def compiled() -> tuple[int, int]:
        pbc = np.ones(3, dtype=np.int64)
        found = [find_points_in_spheres(pos, pos, r=cutoff, pbc=pbc, lattice=cell) for pos, cell in arrays]
        return len(arrays), sum(len(length) for *_, length in found) - sum(len(pos) for pos, _ in arrays)

    compare(
        "12 nearest neighbours within 8 Å",
        {
            "batched": ours(NearestNeighbors()),
            "batched, whole shells": ours(NearestNeighbors(ties=True)),
            "pymatgen's neighbour objects, sorted": in_python,
        },
    )
    ways = {"batched": ours(RadiusGraph(cutoff)), "pymatgen's compiled finder alone, unsorted": compiled}
    if importlib.util.find_spec("matgl") is None:
        print("\nmatgl is not installed")
    else:
        from matgl.ext.pymatgen import Structure2Graph, get_element_list

        converter = Structure2Graph(get_element_list(structures), cutoff)

        def matgl() -> tuple[int, int]:
            made = [converter.get_graph(structure)[0] for structure in structures]
            return len(made), sum(graph.edge_index.shape[1] for graph in made)

        ways["matgl's converter"] = matgl
    compare(f"all neighbours within {cutoff} Å", ways)


def compare_modes(dataset: CrystalDataset, batch_sites: int) -> None:
    graph = NearestNeighbors()
    objective = DeepInfoMax(build("cgcnn"))

    def count(batches: Iterable[CrystalBatch]) -> tuple[int, int]:
        crystals = edges = 0
        for batch in batches:
            crystals += batch.num_graphs
            edges += batch.edge_dist.numel()
        return crystals, edges

    def steps() -> tuple[int, int]:
        for batch in built:
            objective(batch)["total"].backward()
        return count(built)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crystals.parquet"
        dataset.to_parquet(path)
        cache = GraphCache(dataset, graph, Path(folder) / "graphs.npz")
        start = time.perf_counter()
        GraphCache(dataset, graph, cache.path)
        print(
            f"\ncache of graphs: {cache.path.stat().st_size / len(dataset):.0f} bytes a crystal, "
            f"opened in {1e6 * (time.perf_counter() - start) / len(dataset):.1f} µs a crystal"
        )
        built = list(CrystalLoader(dataset, graph, batch_sites))[:5]
        stream = StreamingLoader(path, graph, batch_sites)
        compare(
            "an epoch of batches with CGCNN's graph",
            {
                "built in the loader": lambda: count(CrystalLoader(dataset, graph, batch_sites)),
                "by size": lambda: count(CrystalLoader(dataset, graph, batch_sites, bucket=True)),
                "from the cache": lambda: count(CrystalLoader(dataset, cache, batch_sites)),
                "streamed, one row group": lambda: count(stream),
                "a training step of CGCNN, for comparison": steps,
            },
        )


if __name__ == "__main__":
    main()
