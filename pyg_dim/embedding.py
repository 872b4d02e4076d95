"""Embed data sets into files: the commands ``pyg-dim embed`` and ``pyg-dim export``."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import torch
from torch import Tensor
from tqdm import tqdm

from pyg_dim import __version__
from pyg_dim.data import CrystalDataset, CrystalLoader, load_dataset
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.dataset import Oxidation
from pyg_dim.data.embeddings import write_embeddings
from pyg_dim.data.reading import open_sources, read_crystals
from pyg_dim.data.report import LeftOut, printable
from pyg_dim.data.sources.base import ID_COLUMNS
from pyg_dim.evaluate.represent import NOT_FINITE, represent, vector_names
from pyg_dim.models.encoder import Readout
from pyg_dim.training.checkpoints import crystal_options, encoder_of, read_checkpoint
from pyg_dim.training.devices import Accelerator, choose_device, made_resident
from pyg_dim.training.exporting import export

_logger = logging.getLogger(__name__)

REPORT: Final = ".report.json"
"""What the name of a report has behind that of the file; not in place of its ending, where an import has its own."""


def embed(
    sources: Sequence[str | Path],
    model: str | Path,
    out: str | Path,
    readout: Readout | None = None,
    batch_sites: int = 1200,
    accelerator: Accelerator = "auto",
    max_sites: int | None = None,
    overwrite: bool = False,
) -> list[LeftOut]:
    """Embed crystals into a file, with a report beside it that names every crystal that was left out.

    Nothing is written before all is computed, and then in one step: the file is complete or not there. All crystals and
    vectors are in memory, in flat tables.

    Args:
        sources: what :func:`pyg_dim.data.load_dataset` takes; of several, what ``pyg-dim import`` takes.
        model: encoder, what :func:`pyg_dim.load` takes.
        out: file to write. Its ending tells the format: ``.parquet`` (a column of identifiers and one of lists, what
            :func:`pyg_dim.data.embeddings.read_embeddings` reads), ``.csv`` (a column for each number) or ``.npz``
            (arrays ``ids`` [n] and ``vectors`` [n, D]; no pickle). The report has its name with ``.report.json``
            behind.
        readout: vectors, see :meth:`pyg_dim.models.Encoder.readout`; that of the encoder by default.
        batch_sites: sites that are computed at a time.
        accelerator: where.
        max_sites: crystals with more primitive sites are left out; the limit of the training by default.
        overwrite: whether to replace files that are there.

    Returns:
        What was left out; warnings tell of it, and the report names each.

    Raises:
        FileNotFoundError: no such source, encoder or folder to write to.
        ValueError: a file that is there already or is a source itself, another ending, an encoder or source that cannot
            be read, no usable crystal, an option out of range, or a disk that is full.
    """
    out = Path(out)
    report_path = out.with_name(out.name + REPORT)
    _require_target(out, report_path, sources, overwrite)
    checkpoint = read_checkpoint(model)
    encoder = encoder_of(checkpoint, model)
    limit, oxidation = crystal_options(checkpoint, model)
    names = vector_names(encoder, readout)
    device = torch.device(choose_device(accelerator))
    encoder.set_kernels(device.type == "cpu")
    dtype = next(encoder.parameters()).dtype
    dataset = _read(sources, limit if max_sites is None else max_sites, oxidation, dtype)
    if dataset.amount is not None and encoder.needs_structure:
        raise ValueError(
            f"{sources[0]} holds formulas, and {model} is a {encoder.name} encoder, which needs structures"
        )
    loader = CrystalLoader(made_resident(dataset, device), encoder.graph, batch_sites, shuffle=False, shard=False)
    vectors, rows = represent(encoder, tqdm(loader, desc="embed", unit="batch", disable=None), readout, device)
    ids, vectors, faults = _finite(dataset.ids.take(pa.array(rows.numpy())), vectors)
    if not len(ids):
        raise ValueError(f"{model}: {NOT_FINITE}, for every crystal")
    left_out = [*dataset.report.left_out, *faults]
    report = {
        "model": str(model),
        "architecture": encoder.name,
        "readout": encoder.default_readout if readout is None else readout,
        "numbers": len(names),
        "version": __version__,
        "source": dataset.report.source,
        "read": dataset.report.num_read,
        "embedded": len(ids),
        "notes": dataset.report.all_notes(),
        "rejected": [asdict(item) for item in left_out],
    }
    try:
        # The file itself last: where it is new, so is the report.
        with _replacing(report_path) as file:
            text = json.dumps(report, indent=1, ensure_ascii=False)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
        with _replacing(out) as file:
            WRITERS[out.suffix](file, ids, vectors, names)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    if left_out:
        _logger.warning("%d crystals were left out; %s names each", len(left_out), printable(str(report_path)))
    _logger.info("%d crystals, %d numbers each: %s", len(ids), len(names), printable(str(out)))
    return left_out


def _read(sources: Sequence[str | Path], max_sites: int, oxidation: Oxidation, dtype: torch.dtype) -> CrystalDataset:
    if len(sources) == 1:
        return load_dataset(sources[0], max_sites, oxidation, dtype)
    raw, report = read_crystals(open_sources(sources), ImportOptions(max_sites))
    # The names of all files would be in front of every message.
    report.source = f"{len(sources)} sources"
    return CrystalDataset.from_raw(raw, report, max_sites, oxidation, dtype)


def _finite(ids: pa.Array, vectors: Tensor) -> tuple[pa.Array, Tensor, list[LeftOut]]:
    """What can be written, and what cannot."""
    finite = vectors.isfinite().all(dim=1)
    if finite.all():
        return ids, vectors, []
    mask = pa.array(finite.numpy())
    faults = [LeftOut(name, NOT_FINITE) for name in ids.filter(pc.invert(mask)).to_pylist()]
    _logger.warning("%s: %d crystals (%s for instance)", NOT_FINITE, len(faults), faults[0])
    return ids.filter(mask), vectors[finite], faults


def _require_target(out: Path, report_path: Path, sources: Sequence[str | Path], overwrite: bool) -> None:
    """Look at everything that could be wrong with the file to write before hours of work."""
    if out.suffix not in WRITERS:
        raise ValueError(f"{out}: embeddings are written to files that end with {', '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"cannot write to the folder {out.parent}; choose another --out")
    existing = [Path(source) for source in sources if Path(source).exists()]
    for source in existing:
        if out.exists() and out.samefile(source):
            raise ValueError(f"{out} is both a source and the file to write; choose another --out")
        if source.is_dir() and out.suffix == ".parquet" and out.parent.samefile(source):
            raise ValueError(f"{source} is a data set, and {out.name} would become a part of it; choose another --out")
    for target in (out, report_path):
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists; --overwrite replaces it")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A place to write to, which takes the place of a file once that is done."""
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(path: Path, ids: pa.Array, vectors: Tensor, _: Sequence[str]) -> None:
    write_embeddings(path, ids.to_pylist(), vectors)


def _write_csv(path: Path, ids: pa.Array, vectors: Tensor, names: Sequence[str]) -> None:
    columns = [pa.array(column) for column in vectors.numpy().T]
    pyarrow.csv.write_csv(pa.table([ids, *columns], [ID_COLUMNS[0], *names]), path)


def _write_npz(path: Path, ids: pa.Array, vectors: Tensor, _: Sequence[str]) -> None:
    np.savez(path, ids=np.array(ids.to_pylist(), dtype=np.str_), vectors=vectors.numpy())


WRITERS: Final[dict[str, Callable[[Path, pa.Array, Tensor, Sequence[str]], None]]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".npz": _write_npz,
}
"""Formats by the ending of the file."""


def embed_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim embed``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Turn crystals into the vectors of a frozen encoder.",
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="what --data of pyg-dim train takes, or several")
    parser.add_argument(
        "--model",
        required=True,
        help="name of an encoder that comes with the package, a file of one, or hf://user/name",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=f"file to write: {', '.join(WRITERS)}")
    parser.add_argument("--readout", choices=get_args(Readout), help="vectors; by default those of the encoder")
    parser.add_argument("--batch-sites", type=int, default=1200, help="sites that are computed at a time")
    parser.add_argument("--accelerator", choices=get_args(Accelerator), default="auto", help="gpu is CUDA")
    parser.add_argument("--max-sites", type=int, help="sites of the largest primitive cell; by default as in training")
    parser.add_argument("--overwrite", action="store_true", help="replace the file and its report")
    chosen = vars(parser.parse_args(arguments))
    embed(chosen.pop("source"), **chosen)
    return 0


def export_command(arguments: Sequence[str], prog: str) -> int:
    """Run ``pyg-dim export``.

    Args:
        arguments: flags.
        prog: how the command is called in messages.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog,
        description="Write the encoder of a checkpoint as a weights file (safetensors), with its model card beside it.",
    )
    parser.add_argument("source", metavar="CKPT", help="checkpoint of a run, or another weights file")
    parser.add_argument("--out", required=True, metavar="FILE.safetensors", help="file to write")
    parser.add_argument("--licence", help="of the weights, for example CC-BY-4.0")
    parser.add_argument("--about", help="what users should know: where the data come from, who made it")
    parser.add_argument("--overwrite", action="store_true", help="replace the file; a card that is there is kept")
    chosen: dict[str, Any] = vars(parser.parse_args(arguments))
    card = export(**chosen)
    _logger.info("saved: %s; its card: %s", chosen["out"], card)
    return 0
