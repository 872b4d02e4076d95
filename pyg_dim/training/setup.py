"""From the options of a run to its parts: data, encoder, objective."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from pyg_dim import models, native
from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.data.fingerprints import fingerprint_table
from pyg_dim.data.splits import SPLIT_RULES, given_parts, split
from pyg_dim.objectives import BarlowTwins, Combined, DeepInfoMax, Distillation, Fingerprint, Supervised
from pyg_dim.objectives.deep_infomax import STRUCTURE_KINDS
from pyg_dim.training.checkpoints import changed_options, load_encoder_state, read_checkpoint
from pyg_dim.training.devices import compile_fault
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.teachers import is_table, teacher_embeddings

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

    def summary(self, source: str, targets: Sequence[str] = (), teacher: int | None = None) -> dict[str, Any]:
        """Plain values that tell this data from other data.

        Args:
            source: what the data were read from.
            targets: labels that the run uses.
            teacher: checksum of the teacher.

        Returns:
            "source", numbers of "crystals", "sites", "train", "val" and "left_out", "teacher", and "fingerprint", a
            checksum of the crystals, the labels of the targets and the parts. It is the same in 32 and 64 bit numbers.
        """
        dataset = self.dataset
        geometry = [dataset.pos.float(), dataset.cell.float(), dataset.oxidation.float()]
        if dataset.amount is not None:
            geometry = [dataset.amount.float()]
        labels = [dataset.target(name) for name in targets]
        checksum = 0
        for part in (dataset.z, dataset.ptr, *geometry, *labels, self.train, self.val):
            checksum = zlib.crc32(part.contiguous().numpy().data, checksum)
        return {
            "source": source,
            "crystals": len(self.dataset),
            "sites": self.dataset.z.numel(),
            "train": self.train.numel(),
            "val": self.val.numel(),
            "left_out": len(self.dataset.report.left_out),
            "teacher": teacher,
            "fingerprint": checksum,
        }


def prepare_data(options: TrainOptions) -> RunData:
    """Read the crystals of a run and split them.

    Args:
        options: data, objective, target, limit, max_sites, oxidation, precision, split, val_fraction, seed,
            fingerprints and those of the teacher.

    Returns:
        The crystals, with fingerprints and embeddings where an objective predicts them; those alone that an objective
        can learn from: supervised needs a label of one of the targets, distillation an embedding in the table.

    Raises:
        FileNotFoundError: no such data.
        ValueError: data of an unknown kind or without a usable crystal, an unknown target (the message lists the
            columns there are), a target without labels, or a split or a teacher that does not fit the data.
    """
    dtype = torch.float64 if options.precision == "64" else torch.float32
    dataset = load_dataset(options.data, max_sites=options.max_sites, oxidation=options.oxidation, dtype=dtype)
    if dataset.amount is not None and models.MODELS[options.model].needs_structure:
        without = ", ".join(name for name, model in models.MODELS.items() if not model.needs_structure)
        raise ValueError(
            f"{options.data} holds formulas, and --model {options.model} needs structures: use --model {without}, or "
            "data with a column of CIFs"
        )
    labels = [dataset.target(name) for name in options.targets]
    for name, label in zip(options.targets, labels, strict=True):
        if not label.isfinite().any():
            _logger.warning("%s has no value of %s: it cannot be probed", options.data, name)
    if is_table(options):
        dataset = dataset.with_embedding(teacher_embeddings(options, dataset))
    kept = _of_use(options, dataset, labels).nonzero()[:, 0]
    if options.limit is not None and options.limit < kept.numel():
        generator = torch.Generator().manual_seed(options.seed)
        kept = kept[torch.randperm(kept.numel(), generator=generator)[: options.limit].sort().values]
    whole, dataset = dataset, dataset if kept.numel() == len(dataset) else dataset.subset(kept)
    if "fingerprint" in options.objectives:
        dataset = dataset.with_fingerprint(fingerprint_table(dataset, options.fingerprint_kinds))
    if "distillation" in options.objectives and dataset.embedding is None:
        dataset = dataset.with_embedding(teacher_embeddings(options, dataset))
    if options.split in SPLIT_RULES:
        return RunData(dataset, *split(dataset, options.val_fraction, options.seed, options.split))  # type: ignore[arg-type]
    # Parts that were laid down for all crystals: of each, those that are kept.
    place = torch.full((len(whole),), -1).index_copy(0, kept, torch.arange(kept.numel()))
    train, val = (place[part] for part in given_parts(whole, options.split))
    train, val = train[train >= 0], val[val >= 0]
    if not train.numel():
        raise ValueError(f"--split {options.split} leaves no crystal to train on")
    return RunData(dataset, train, val)


def _of_use(options: TrainOptions, dataset: CrystalDataset, labels: Sequence[Tensor]) -> Tensor:
    """[n] bool: crystals that at least one of the objectives learns from."""
    everything = torch.ones(len(dataset), dtype=torch.bool)
    known: dict[str, Tensor] = {}
    if "supervised" in options.objectives:
        known["supervised"] = torch.stack(list(labels), dim=1).isfinite().any(dim=1)
        if not known["supervised"].any():
            raise ValueError(f"{options.data} has no crystal with a label in {', '.join(options.targets)}")
    if dataset.embedding is not None:
        known["distillation"] = dataset.embedding.isfinite().all(dim=1)
    of_use = torch.stack([known.get(name, everything) for name in options.objectives]).any(dim=0)
    if not of_use.all():
        lacking = {"supervised": f"a label of {options.targets}", "distillation": "an embedding"}
        text = " and ".join(lacking[name] for name in known)
        _logger.info("%d crystals without %s are left out", int((~of_use).sum()), text)
    return of_use


def prepare_encoder(options: TrainOptions) -> tuple[models.Encoder, dict[str, Tensor]]:
    """Build the encoder of a run; a warning names the options in which it differs from that of ``init``.

    Args:
        options: model, encoder, seed and init.

    Returns:
        The encoder, with the parameters of ``init`` where that is given, and a copy of the parameters that it has
        untrained: those that follow from the seed.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown model, an option of it that is unknown or out of range, or a checkpoint that does not
            fit; the message names both.
    """
    # Parameters follow from the seed alone, whatever was read before.
    torch.manual_seed(options.seed)
    try:
        encoder = models.build(options.model, **options.encoder)
    except (ValueError, RuntimeError) as error:
        # Also what the layers of an architecture say of their widths, in several lines.
        raise ValueError(f"--model {options.model} cannot be built: {str(error).splitlines()[0]}") from error
    untrained = {name: value.clone() for name, value in encoder.state_dict().items()}
    if options.init is not None:
        checkpoint = read_checkpoint(options.init)
        load_encoder_state(encoder, checkpoint, options.init)
        # Shapes tell of some options only: with another cutoff the parameters fit, but the crystals look different.
        if changed := changed_options(encoder, checkpoint):
            _logger.warning("--init %s was trained with other options: %s", options.init, "; ".join(changed))
    return encoder, untrained


def prepare_kernels(options: TrainOptions, encoder: models.Encoder, device: str) -> None:
    """Let the encoder use C++ kernels and torch.compile where they are wanted and work; warnings say where not.

    Args:
        options: compile and precision.
        encoder: the encoder of the run.
        device: where it will run.
    """
    on_cpu = device == "cpu"
    fault = native.fault() if options.compile and on_cpu else None
    encoder.set_kernels(options.compile and on_cpu and fault is None)
    if type(encoder).set_compile is models.Encoder.set_compile:
        return
    # Without a C++ compiler there is no torch.compile either, and one warning will do.
    # Kernels leave mixed precision to PyTorch, and serve what is represented without it.
    served = on_cpu and options.compile and options.precision in ("32", "64") and encoder.has_kernels
    wanted = options.compile and not (served or (on_cpu and fault is not None))
    fault = None
    if wanted:
        _logger.info("torch.compile: the first steps take up to a minute longer; --no-compile does without")
        fault = compile_fault(device)
    if fault is not None:
        _logger.warning("torch.compile does not work here: training without it (same numbers, slower): %s", fault)
    encoder.set_compile(wanted and fault is None)


def prepare_objective(options: TrainOptions, encoder: models.Encoder, data: RunData) -> nn.Module:
    """Build the objective of a run.

    Args:
        options: objective, objective_weights and the options of each objective.
        encoder: what is trained.
        data: crystals; labels, fingerprints and embeddings of those to train on set the normalisation.

    Returns:
        The objective, a :class:`~pyg_dim.objectives.combined.Combined` where there are several.

    Raises:
        ValueError: an option out of range, or a target without labels in the training part.
    """
    objectives = {name: _BUILDERS[name](options, encoder, data) for name in options.objectives}
    if len(objectives) > 1:
        return Combined(objectives, dict(zip(objectives, options.weights, strict=True)))
    return objectives[options.objectives[0]]


def _deep_infomax(options: TrainOptions, encoder: models.Encoder, _: RunData) -> nn.Module:
    if not encoder.needs_structure and (lost := [kind for kind in options.false_kinds if kind in STRUCTURE_KINDS]):
        if len(lost) == len(options.false_kinds):
            raise ValueError(f"--kinds {','.join(lost)} needs structures, which {encoder.name} does not see: add other")
        _logger.info("false samples that need structures, which %s does not see: left out: %s", encoder.name, *lost)
    return DeepInfoMax(
        encoder, options.false_kinds, options.alpha, options.beta, isolate=options.isolate, donors=options.donors
    )


def _fingerprint(_: TrainOptions, encoder: models.Encoder, data: RunData) -> nn.Module:
    values = data.dataset.fingerprint
    assert values is not None  # noqa: S101 - prepare_data has computed them
    objective = Fingerprint(encoder, values.size(1))
    objective.fit_fingerprints(values[data.train])
    return objective


def _distillation(_: TrainOptions, encoder: models.Encoder, data: RunData) -> nn.Module:
    values = data.dataset.embedding
    assert values is not None  # noqa: S101 - prepare_data has computed or read them
    objective = Distillation(encoder, values.size(1))
    objective.fit_embeddings(values[data.train])
    return objective


def _barlow_twins(options: TrainOptions, encoder: models.Encoder, _: RunData) -> nn.Module:
    if not encoder.needs_structure and options.displacement != TrainOptions.displacement:
        raise ValueError(f"--displacement moves sites, and {encoder.name} sees none: leave it out")
    return BarlowTwins(encoder, options.barlow_channels, mask=options.mask, displacement=options.displacement)


def _supervised(options: TrainOptions, encoder: models.Encoder, data: RunData) -> nn.Module:
    objective = Supervised(encoder, options.targets, options.loss, options.head_channels, head=options.head)
    labels = [data.dataset.target(name)[data.train] for name in options.targets]
    objective.fit_labels(torch.stack(labels, dim=1))
    return objective


_BUILDERS: Final[dict[str, Callable[[TrainOptions, models.Encoder, RunData], nn.Module]]] = {
    "deep_infomax": _deep_infomax,
    "fingerprint": _fingerprint,
    "barlow_twins": _barlow_twins,
    "distillation": _distillation,
    "supervised": _supervised,
}
"""How each of :data:`pyg_dim.training.options.OBJECTIVES` is built."""
