"""Embed data sets into files: the commands ``pyg-dim embed`` and ``pyg-dim export``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final, get_args

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from tqdm import tqdm

from pyg_dim import __version__
from pyg_dim.data import CrystalDataset, CrystalLoader, StreamingLoader, load_dataset
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.dataset import Oxidation
from pyg_dim.data.embedding_files import FILES
from pyg_dim.data.embedding_parts import PLACES, SHARD, Shard, made_with
from pyg_dim.data.loader import PlannedLoader
from pyg_dim.data.parquet import has_optimade_columns
from pyg_dim.data.reading import open_sources, read_crystals
from pyg_dim.data.replacing import replacing
from pyg_dim.data.report import ImportReport, LeftOut, printable
from pyg_dim.evaluate.represent import NOT_FINITE, represent, vector_names
from pyg_dim.models import Encoder
from pyg_dim.models.encoder import Readout
from pyg_dim.training.checkpoints import crystal_options, encoder_of, read_checkpoint
from pyg_dim.training.devices import Accelerator, choose_device, made_resident
from pyg_dim.training.exporting import export, weights_of
from pyg_dim.training.launch import launcher

_logger = logging.getLogger(__name__)

REPORT: Final = ".report.json"
"""What the name of a report has behind that of the file; not in place of its ending, where an import has its own."""
AUTO: Final = "auto"
"""The shard of a process that a launcher has started."""

_PASSED_OVER: Final = "_"
"""Readers of a folder of Parquet files leave out what begins with it."""
_PIECE: Final = 100
"""Batches whose vectors are in memory together."""
_IDS_AT_A_TIME: Final = 2**16


def embed(
    sources: Sequence[str | Path],
    model: str | Path,
    out: str | Path,
    readout: Readout | None = None,
    batch_sites: int = 1200,
    accelerator: Accelerator = "auto",
    max_sites: int | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    resume: bool = False,
) -> list[LeftOut]:
    """Embed crystals into a file, with a report that names every crystal that was left out.

    A file appears in one step, when it is complete. Of one Parquet source with OPTIMADE columns two row groups are in
    memory at a time, of other sources all crystals; of vectors those of some batches, but for ``.npz``.

    Shards are the batches of one plan, cut into ranges: what they hold, one behind the other, is to the last bit what
    one process makes of all on the same kind of machine.

    Args:
        sources: what :func:`pyg_dim.data.load_dataset` takes; of several, what ``pyg-dim import`` takes.
        model: encoder, what :func:`pyg_dim.load` takes.
        out: file to write. Its ending tells the format: ``.parquet`` (a column of identifiers and one of lists, what
            :func:`pyg_dim.data.embeddings.read_embeddings` reads), ``.csv`` (a column for each number) or ``.npz``
            (arrays ``ids`` [n] and ``vectors`` [n, D]; no pickle). The report has its name with ``.report.json``
            behind. With a shard it is a folder, which is made where there is none: for
            ``part-00001-of-00004.parquet`` and the like, and reports whose names begin with an underscore, which
            readers of Parquet folders pass over.
        readout: vectors, see :meth:`pyg_dim.models.Encoder.readout`; that of the encoder by default.
        batch_sites: sites that are computed at a time.
        accelerator: where.
        max_sites: crystals with more primitive sites are left out; the limit of the training by default.
        overwrite: whether to replace files that are there.
        shard: ``"K/N"`` for the K-th of N parts, from 1; ``"auto"`` for the place of this process among those that
            torchrun or srun has started.
        resume: keep a part that is complete, instead of refusing to replace it.

    Returns:
        What was left out; warnings tell of it, and the report names each. Of a source, the first shard tells.

    Raises:
        FileNotFoundError: no such source, encoder or folder to write to.
        ValueError: a file that is there already or is a source itself, another ending, an encoder or source that cannot
            be read, no usable crystal, an option out of range, a part that was made with something else, or a disk that
            is full.
    """
    part, local_rank = _shard(shard)
    if resume and part is None:
        raise ValueError("--resume goes with --shard: a file that is there is complete")
    path = Path(out) if part is None else _part_in(Path(out), part)
    report_path = path.with_name(("" if part is None else _PASSED_OVER) + path.name + REPORT)
    require_target(path, sources, overwrite or resume, FILES, part is not None)
    checkpoint = read_checkpoint(model)
    encoder = encoder_of(checkpoint, model)
    names = vector_names(encoder, readout)
    device = device_of(accelerator, local_rank)
    loader, ids, source = open_batches(sources, checkpoint, model, encoder, batch_sites, device, max_sites)
    dtype = next(encoder.parameters()).dtype
    about = {
        "model": str(model),
        "architecture": encoder.name,
        "weights": f"{zlib.crc32(weights_of(checkpoint)):08x}",
        "readout": encoder.default_readout if readout is None else readout,
        "numbers": len(names),
        "batch_sites": batch_sites,
        "version": __version__,
        "source": source.source,
        "read": source.num_read,
        "crystals": f"{_checksum(ids):08x}",
        SHARD: None if part is None else str(part),
    }
    if resume and path.exists():
        _require_same(path, about)
        _logger.info("complete already: %s", printable(str(path)))
        return []
    batches = range(len(loader)) if part is None else part.range(len(loader))
    left_out = [] if part is not None and part.number > 1 else list(source.left_out)
    written = 0
    with written_with_report(path, report_path) as (file, report):
        with FILES[path.suffix](file, names, dtype, about) as target:
            for vectors, rows in _pieces(encoder, loader, batches, readout, device):
                here, vectors, faults = finite_rows(ids.take(pa.array(rows.numpy())), vectors)
                target.write(here, vectors)
                written += len(here)
                left_out += faults
        if not written and part is None:
            raise ValueError(f"{model}: {NOT_FINITE}, for every crystal")
        report |= {**about, "embedded": written, "notes": source.all_notes(), "rejected": [*map(asdict, left_out)]}
    if left_out:
        _logger.warning("%d crystals were left out; %s names each", len(left_out), printable(str(report_path)))
    _logger.info("%d crystals, %d numbers each: %s", written, len(names), printable(str(path)))
    return left_out


def _shard(text: str | None) -> tuple[Shard | None, int]:
    """The shard of this process, and its number on this machine."""
    if text != AUTO:
        return None if text is None else Shard.parse(text), 0
    found = launcher()
    if found is None:
        raise ValueError(f"--shard {AUTO} is for processes of torchrun or srun, and this is none: say K/N")
    _, environment = found
    return Shard(environment.global_rank() + 1, environment.world_size()), environment.local_rank()


def _part_in(folder: Path, shard: Shard) -> Path:
    """The file of a part; its folder is made."""
    if folder.suffix in FILES:
        raise ValueError(
            f"--shard writes files into a folder, and {folder} is called like a file: choose another --out"
        )
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such folder: {folder.parent}") from error
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    return folder / shard.file


def device_of(accelerator: Accelerator, local_rank: int = 0) -> torch.device:
    """The device to compute on.

    Args:
        accelerator: what was asked for.
        local_rank: number of this process on its machine.

    Returns:
        The device; the processes of a machine share its GPUs.

    Raises:
        ValueError: there is no such device.
    """
    kind = choose_device(accelerator)
    return torch.device(kind, local_rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)


def open_batches(
    sources: Sequence[str | Path],
    checkpoint: Mapping[str, Any],
    model: str | Path,
    encoder: Encoder,
    batch_sites: int,
    device: torch.device,
    max_sites: int | None = None,
) -> tuple[PlannedLoader, pa.Array, ImportReport]:
    """Open the crystals that an encoder is to see, as it saw those of its training.

    Args:
        sources: see :func:`embed`.
        checkpoint: where the encoder comes from.
        model: its name, for messages.
        encoder: the encoder; its kernels are switched on where they serve.
        batch_sites: sites of a batch.
        device: where to compute.
        max_sites: crystals with more primitive sites are left out; the limit of the training where None.

    Returns:
        Batches of all crystals in order, [n] identifiers, and what was left out.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a source that cannot be read or has no usable crystal, or formulas for an encoder of structures.
    """
    limit, oxidation = crystal_options(checkpoint, model)
    limit = limit if max_sites is None else max_sites
    dtype = next(encoder.parameters()).dtype
    encoder.set_kernels(device.type == "cpu")
    if len(sources) == 1 and has_optimade_columns(Path(sources[0])):
        stream = StreamingLoader(
            sources[0], encoder.graph, batch_sites, shuffle=False, shard=False, window=2, max_sites=limit,
            oxidation=oxidation, dtype=dtype, device=device,
        )  # fmt: skip
        return stream, stream.ids, stream.report
    dataset = _read(sources, limit, oxidation, dtype)
    if dataset.amount is not None and encoder.needs_structure:
        raise ValueError(
            f"{sources[0]} holds formulas, and {model} is a {encoder.name} encoder, which needs structures"
        )
    loader = CrystalLoader(made_resident(dataset, device), encoder.graph, batch_sites, shuffle=False, shard=False)
    return loader, dataset.ids, dataset.report


@contextmanager
def written_with_report(path: Path, report_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write a file and its report in one step; where that fails, what was there stays.

    Args:
        path: the file.
        report_path: the report, JSON.

    Yields:
        Where to write the file, and an empty dictionary for the contents of the report.

    Raises:
        ValueError: a disk that is full, or may not be written to.
    """
    report: dict[str, Any] = {}
    try:
        # The file itself takes its place last: where it is new, so is the report.
        with replacing(path) as file, replacing(report_path) as report_file:
            yield file, report
            text = json.dumps(report, indent=1, ensure_ascii=False)
            report_file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def _pieces(
    encoder: Encoder, loader: PlannedLoader, batches: range, readout: Readout | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors and rows of some batches at a time."""
    with closing(loader.batches(batches.start)) as stream:
        shown = tqdm(islice(stream, len(batches)), total=len(batches), desc="embed", unit="batch", disable=None)
        for done in range(0, len(batches), _PIECE):
            yield represent(encoder, islice(shown, min(_PIECE, len(batches) - done)), readout, device)


def _checksum(ids: pa.Array) -> int:
    """A number that tells the crystals of one source from those of another."""
    checksum = 0
    for start in range(0, len(ids), _IDS_AT_A_TIME):
        checksum = zlib.crc32("\n".join(ids.slice(start, _IDS_AT_A_TIME).to_pylist()).encode(), checksum)
    return checksum


def _require_same(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse to keep a part that this call would not have written."""
    before = made_with(path)
    if differ := sorted(name for name in about.keys() - PLACES if before.get(name) != about[name]):
        told = "; ".join(f"{name} {before.get(name)} there and {about[name]} now" for name in differ)
        raise ValueError(
            f"{path} was made with something else ({told}): --overwrite replaces it, or choose another --out"
        )


def _read(sources: Sequence[str | Path], max_sites: int, oxidation: Oxidation, dtype: torch.dtype) -> CrystalDataset:
    if len(sources) == 1:
        return load_dataset(sources[0], max_sites, oxidation, dtype)
    raw, report = read_crystals(open_sources(sources), ImportOptions(max_sites))
    # The names of all files would be in front of every message.
    report.source = f"{len(sources)} sources"
    return CrystalDataset.from_raw(raw, report, max_sites, oxidation, dtype)


def finite_rows(ids: pa.Array, vectors: Tensor) -> tuple[pa.Array, Tensor, list[LeftOut]]:
    """Tell what can be written from what cannot; a warning counts the latter.

    Args:
        ids: [n] identifiers.
        vectors: [n, D].

    Returns:
        Identifiers and vectors of the rows without a number that is infinite or none, and the others.
    """
    finite = vectors.isfinite().all(dim=1)
    if finite.all():
        return ids, vectors, []
    mask = pa.array(finite.numpy())
    faults = [LeftOut(name, NOT_FINITE) for name in ids.filter(pc.invert(mask)).to_pylist()]
    _logger.warning("%s: %d crystals (%s for instance)", NOT_FINITE, len(faults), faults[0])
    return ids.filter(mask), vectors[finite], faults


def require_target(
    out: Path, sources: Sequence[str | Path], overwrite: bool, endings: Iterable[str], is_part: bool = False
) -> None:
    """Look at everything that could be wrong with the file to write before hours of work.

    Args:
        out: the file.
        sources: what is read.
        overwrite: whether it may be there already.
        endings: that it may have.
        is_part: whether it is one of several.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another ending, a folder that cannot be written to, a file that is there, or a source.
    """
    if out.suffix not in endings:
        raise ValueError(f"{out}: the file to write must end with {', '.join(endings)}")
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
    # A report alone is what a command that was killed between the two leaves.
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; --overwrite replaces it" + (", --resume keeps it" if is_part else ""))


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Add what commands share that let an encoder see crystals and write a file.

    Args:
        parser: of the command.
    """
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="what --data of pyg-dim train takes, or several")
    parser.add_argument("--batch-sites", type=int, default=1200, help="sites that are computed at a time")
    parser.add_argument("--accelerator", choices=get_args(Accelerator), default="auto", help="gpu is CUDA")
    parser.add_argument("--max-sites", type=int, help="sites of the largest primitive cell; by default as in training")
    parser.add_argument("--overwrite", action="store_true", help="replace the file and its report")


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
    parser.add_argument(
        "--model",
        required=True,
        help="name of an encoder that comes with the package, a file of one, or hf://user/name",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help=f"file to write: {', '.join(FILES)}; with --shard a folder"
    )
    parser.add_argument("--readout", choices=get_args(Readout), help="vectors; by default those of the encoder")
    add_source_flags(parser)
    parser.add_argument(
        "--shard",
        metavar="K/N",
        help=f"compute the K-th of N parts alone, from 1/N to N/N; {AUTO} for processes of torchrun or srun",
    )
    parser.add_argument("--resume", action="store_true", help="keep a part that is complete (--shard)")
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
