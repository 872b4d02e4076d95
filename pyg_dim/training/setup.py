"""From the options of a run to its parts: data, encoder, objective."""

from __future__ import annotations

import logging
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyg_dim import models
from pyg_dim.data import CrystalDataset, load_dataset, split
from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.objectives.supervised import Supervised
from pyg_dim.training.checkpoints import SECTION, load_encoder_state, read_checkpoint
from pyg_dim.training.options import TrainOptions

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """The crystals of a run.

    Attributes:
        dataset: all of them.
        train: rows to train on.
        val: rows to validate on, possibly none.
    """

    dataset: CrystalDataset
    train: Tensor
    val: Tensor

    def summary(self, source: str) -> dict[str, Any]:
        """Plain values that tell this data from other data.

        Args:
            source: what the data were read from.

        Returns:
            "source", numbers of "crystals", "sites", "train", "val" and "left_out", and "fingerprint", a checksum of
            the species and of the parts.
        """
        checksum = 0
        for part in (self.dataset.z, self.train, self.val):
            checksum = zlib.crc32(part.numpy().tobytes(), checksum)
        return {
            "source": source,
            "crystals": len(self.dataset),
            "sites": self.dataset.z.numel(),
            "train": self.train.numel(),
            "val": self.val.numel(),
            "left_out": len(self.dataset.report.left_out),
            "fingerprint": checksum,
        }


def prepare_data(options: TrainOptions) -> RunData:
    """Read the crystals of a run and split them.

    Args:
        options: data, target, limit, max_sites, oxidation, precision, val_fraction and seed.

    Returns:
        The crystals; for the supervised objective those with at least one label of the targets.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data of an unknown kind or without a usable crystal, an unknown target (the message lists the
            columns there are), or a target without labels.
    """
    dtype = torch.float64 if options.precision == "64" else torch.float32
    dataset = load_dataset(options.data, max_sites=options.max_sites, oxidation=options.oxidation, dtype=dtype)
    labels = [dataset.target(name) for name in options.targets]
    if options.objective == "supervised":
        known = torch.stack(labels, dim=1).isfinite().any(dim=1)
        if not known.any():
            raise ValueError(f"{options.data} has no crystal with a label in {', '.join(options.targets)}")
        if not known.all():
            _logger.info("%d crystals without a label of %s are left out", int((~known).sum()), options.targets)
            dataset = dataset.subset(known.nonzero()[:, 0])
    if options.limit is not None and options.limit < len(dataset):
        generator = torch.Generator().manual_seed(options.seed)
        chosen = torch.randperm(len(dataset), generator=generator)[: options.limit]
        dataset = dataset.subset(chosen.sort().values)
    train, val = split(dataset, options.val_fraction, options.seed)
    return RunData(dataset, train, val)


def prepare_encoder(options: TrainOptions) -> tuple[models.Encoder, dict[str, Tensor]]:
    """Build the encoder of a run.

    Args:
        options: model, encoder, seed, init, resume and compile.

    Returns:
        The encoder, with the parameters of ``init`` where that is given, and a copy of the parameters that it has
        untrained: those that follow from the seed.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown model or option of it, or a checkpoint that does not fit; the message names both.
    """
    # Parameters follow from the seed alone, whatever was read before.
    torch.manual_seed(options.seed)
    encoder = models.build(options.model, **options.encoder)
    untrained = {name: value.clone() for name, value in encoder.state_dict().items()}
    if options.init is not None:
        load_encoder_state(encoder, read_checkpoint(options.init), options.init)
    if options.compile and not has_compiler():
        _logger.warning("no C++ compiler found: training without torch.compile (same numbers, slower)")
    encoder.set_compile(options.compile and has_compiler())
    return encoder, untrained


def prepare_objective(options: TrainOptions, encoder: models.Encoder, data: RunData) -> DeepInfoMax | Supervised:
    """Build the objective of a run.

    Args:
        options: objective and its own options.
        encoder: what is trained.
        data: crystals; their training labels set the normalisation.

    Returns:
        The objective.

    Raises:
        ValueError: an option out of range, or a target without labels in the training part.
    """
    if options.objective == "supervised":
        supervised = Supervised(encoder, options.targets, options.loss, options.head_channels)
        labels = [data.dataset.target(name)[data.train] for name in options.targets]
        supervised.fit_labels(torch.stack(labels, dim=1))
        return supervised
    return DeepInfoMax(
        encoder, options.false_kinds, options.alpha, options.beta, isolate=options.isolate, donors=options.donors
    )


def require_same_data(path: str | Path, summary: dict[str, Any]) -> None:
    """Check that a resumed run reads the crystals that it was started on.

    Args:
        path: checkpoint of the run.
        summary: of the data read now, from :meth:`RunData.summary`.

    Raises:
        ValueError: it does not.
    """
    before = read_checkpoint(path)[SECTION]["data"]
    if before["fingerprint"] != summary["fingerprint"]:
        raise ValueError(
            f"{path} was trained on {before['crystals']} crystals of {before['source']}; {summary['source']} now gives "
            f"{summary['crystals']}, or others: resume with the same data, or start a new run with --init {path}"
        )


def has_compiler() -> bool:
    """Whether the C++ compiler that torch.compile calls on this platform is installed."""
    name = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(name) is not None
