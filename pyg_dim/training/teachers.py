"""What the objective distillation learns from: embeddings of the crystals of a run, computed once or read."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from pyg_dim.data import CrystalDataset, CrystalLoader
from pyg_dim.data.embedding_parts import parts_in
from pyg_dim.data.embeddings import TABLES, read_embeddings
from pyg_dim.evaluate.represent import represent
from pyg_dim.models import Encoder, load_crystal_twins_checkpoint
from pyg_dim.training.checkpoints import SECTION, load_encoder, read_checkpoint
from pyg_dim.training.devices import choose_device, made_resident
from pyg_dim.training.options import CRYSTAL_TWINS, TrainOptions
from pyg_dim.training.pretrained import locate

_logger = logging.getLogger(__name__)

_EXAMPLES = 3


def is_table(options: TrainOptions) -> bool:
    """Whether the teacher of a run is a table of embeddings.

    Args:
        options: teacher.

    Returns:
        False for an encoder, and where there is no teacher.
    """
    return options.teacher is not None and (
        Path(options.teacher).suffix in TABLES or bool(parts_in(Path(options.teacher)))
    )


def teacher_embeddings(options: TrainOptions, dataset: CrystalDataset) -> Tensor:
    """What the teacher of a run makes of crystals; a message names some that it has nothing to say about.

    An encoder sees the crystals as the run does (sites, oxidation states, precision), in evaluation mode, on the device
    of the run; its embedding is its global representation.

    Args:
        options: teacher, teacher_atoms, oxidation, batch_sites, accelerator and compile.
        dataset: n crystals.

    Returns:
        [n, F] embeddings, NaN for crystals without one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no checkpoint, network or table, a table without any of the crystals, or a teacher
            that needs structures where there are formulas.
    """
    assert options.teacher is not None  # noqa: S101 - the options have been checked
    if is_table(options):
        vectors = read_embeddings(options.teacher).of(dataset)
    else:
        teacher = _teacher(options)
        if dataset.amount is not None and teacher.needs_structure:
            raise ValueError(
                f"--teacher {options.teacher} needs structures, and {options.data} holds formulas: give a table of its "
                "embeddings, which pyg-dim embed writes"
            )
        vectors = _embed(teacher, options, dataset)
    _logger.info("teacher: %s, %d numbers a crystal", options.teacher, vectors.size(1))
    if missing := (~vectors.isfinite().all(dim=1)).nonzero()[:, 0].tolist():
        some = ", ".join(dataset.ids.take(missing[:_EXAMPLES]).to_pylist())
        _logger.warning(
            "%d of %d crystals have no embedding by %s: %s", len(missing), len(dataset), options.teacher,
            some + ", ..." * (len(missing) > _EXAMPLES),
        )  # fmt: skip
    return vectors


def teacher_checksum(options: TrainOptions) -> int | None:
    """A number that tells the teacher of a run from others.

    Args:
        options: teacher and teacher_atoms.

    Returns:
        Checksum of its files; None without a teacher.

    Raises:
        FileNotFoundError: no such file, or no encoder of such a name.
        ValueError: a hub does not give it.
    """
    if options.teacher is None:
        return None
    files = [("--teacher", path) for path in parts_in(Path(options.teacher)) or [locate(options.teacher)]]
    if options.teacher_atoms is not None:
        files.append(("--teacher-atoms", Path(options.teacher_atoms)))
    checksum = 0
    for flag, path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{flag} {path}: no such file")
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


def _teacher(options: TrainOptions) -> Encoder:
    assert options.teacher is not None  # noqa: S101 - the options have been checked
    if Path(options.teacher).suffix in CRYSTAL_TWINS:
        assert options.teacher_atoms is not None  # noqa: S101 - the options have been checked
        return load_crystal_twins_checkpoint(options.teacher, options.teacher_atoms)
    encoder = load_encoder(options.teacher)
    oxidation = read_checkpoint(options.teacher)[SECTION]["options"].get("oxidation", options.oxidation)
    if oxidation != options.oxidation:
        _logger.warning(
            "--teacher %s was trained with --oxidation %s, and is given crystals of --oxidation %s",
            options.teacher, oxidation, options.oxidation,
        )  # fmt: skip
    return encoder


def _embed(encoder: Encoder, options: TrainOptions, dataset: CrystalDataset) -> Tensor:
    device = torch.device(choose_device(options.accelerator))
    encoder.set_kernels(options.compile and device.type == "cpu")
    # Every process needs all rows.
    loader = CrystalLoader(
        made_resident(dataset, device), encoder.graph, options.batch_sites, shuffle=False, shard=False
    )
    vectors, _ = represent(encoder, tqdm(loader, desc="teacher", unit="batch", disable=None), "global", device)
    return vectors
