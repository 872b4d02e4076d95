"""Time reading CIFs on one core: our path for files of pymatgen's CifWriter against pymatgen's parser, in one process.

Run: ``OMP_NUM_THREADS=1 python benchmarks/import_cif.py crystals.parquet``
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from pyg_dim.data import load_dataset
from pyg_dim.data.cif import fast_sites
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.elements import symbols
from pyg_dim.data.importing import import_crystals
from pyg_dim.data.reading import open_sources, read_crystals


def texts_of(source: str, number: int) -> list[str]:
    dataset = load_dataset(source, dtype=torch.float64)
    rows = torch.linspace(0, len(dataset) - 1, min(number, len(dataset))).long().tolist()
    texts = []
    for row in rows:
        sites = slice(int(dataset.ptr[row]), int(dataset.ptr[row + 1]))
        species = [symbols()[z] for z in dataset.z[sites].tolist()]
        structure = Structure(
            Lattice(dataset.cell[row].numpy()), species, dataset.pos[sites].numpy(), coords_are_cartesian=True
        )
        texts.append(str(CifWriter(structure)))
    return texts


def rate(work: Callable[[str], Any], texts: Sequence[str]) -> float:
    start = time.perf_counter()
    for text in texts:
        work(text)
    return len(texts) / (time.perf_counter() - start)


def by_pymatgen(text: str) -> Any:
    return CifParser.from_str(text).parse_structures(primitive=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="prototypes", help="what load_dataset opens; written as CIFs")
    parser.add_argument("--number", type=int, default=2000, help="files")
    parser.add_argument("--rounds", type=int, default=5, help="of fast path and pymatgen, by turns")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    texts = texts_of(arguments.source, arguments.number)
    fast = sum(fast_sites(text) is not None for text in texts)
    print(f"{len(texts)} CIFs of {sum(map(len, texts)) / len(texts):.0f} characters, {fast} take the fast path")
    part = texts[: max(1, len(texts) // 10)]
    by_pymatgen(texts[0])
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(rate(fast_sites, texts))
        theirs.append(rate(by_pymatgen, part))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"parse: fast path {median(ours):.0f}/s, pymatgen {median(theirs):.0f}/s (every round on a tenth of the files)"
    )
    print(f"ratio: {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f} in {arguments.rounds} rounds)")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cifs"
        folder.mkdir()
        for row, text in enumerate(texts):
            (folder / f"{row}.cif").write_text(text)
        for what, work in (
            ("read, check and reduce", lambda: read_crystals(open_sources([folder]), ImportOptions(50))),
            (
                "the same and write Parquet",
                lambda: import_crystals(open_sources([folder]), Path(name) / "out.parquet", ImportOptions(50)),
            ),
        ):
            start = time.perf_counter()
            work()
            print(f"{what}: {len(texts) / (time.perf_counter() - start):.0f}/s from files, one process")


if __name__ == "__main__":
    main()
