"""A training run from its options to its summary."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pyg_dim import models
from pyg_dim.data import CrystalLoader
from pyg_dim.evaluate.formatting import replace_file
from pyg_dim.evaluate.summary import probe_metrics, summarise
from pyg_dim.training.callbacks import Interrupted, Progress, StopOnSignal
from pyg_dim.training.checkpoint_files import BEST, CheckpointFiles
from pyg_dim.training.checkpoints import LAST, section
from pyg_dim.training.coverage import coverage_notes
from pyg_dim.training.devices import choose_device
from pyg_dim.training.launch import require_processes
from pyg_dim.training.loaders import CrystalData
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.options import TrainOptions
from pyg_dim.training.resume import ResumedRun
from pyg_dim.training.setup import RunData, prepare_data, prepare_encoder, prepare_kernels, prepare_objective
from pyg_dim.training.teachers import teacher_checksum
from pyg_dim.training.tensorboard import EmbeddingProjector, LossCharts, RepresentationMonitor

_logger = logging.getLogger(__name__)

_PRECISIONS = {"16": "16-mixed", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Attributes:
        directory: folder with ``last.ckpt``, ``best.ckpt``, the TensorBoard events and the summary.
        metrics: final values by tag.
        summary: losses and probes, see :func:`pyg_dim.evaluate.summary.summarise`; None without a validation part,
            and on all processes but the first.
    """

    directory: Path
    metrics: dict[str, float]
    summary: pd.DataFrame | None


def train(options: TrainOptions) -> RunResult:
    """Train an encoder: read, split, fit, save, compare with the untrained one.

    Args:
        options: see :class:`TrainOptions`.

    Returns:
        Where the files are, and the final numbers.

    Raises:
        FileNotFoundError: no such data or checkpoint.
        ValueError: options, data or a checkpoint that do not fit, or a disk that is full; the message says what to do.
        FloatingPointError: the loss or a gradient was no number in too many steps (a few are skipped); checkpoints of
            earlier epochs are kept.
        Interrupted: Ctrl-C or SIGTERM; the run has been saved.
    """
    # What can be wrong is looked at before the data are read, which may take a while.
    accelerator = choose_device(options.accelerator)
    require_processes(options.devices, options.num_nodes)
    resumed = None if options.resume is None else ResumedRun(options.resume, options.model)
    teacher = teacher_checksum(options)
    encoder, untrained = prepare_encoder(options)
    # From here on with the options of the architecture that were left to their defaults.
    options = replace(options, encoder=dict(encoder.config))
    is_trained = False
    if resumed is not None:
        resumed.require_same_options(options)
        is_trained = resumed.is_trained(options.epochs)
    _logger.info("data: reading %s", options.data)
    data = prepare_data(options)
    about_data = data.summary(options.data, options.targets, teacher)
    if resumed is not None:
        resumed.require_same_data(about_data)
    prepare_kernels(options, encoder, accelerator)
    objective = prepare_objective(options, encoder, data)
    module = TrainingModule(
        objective,
        options.lr,
        options.weight_decay,
        options.seed,
        section(encoder, options.to_dict(), about_data),
        options.schedule,
    )
    if options.precision == "64":
        # Lightning loads the parameters of a checkpoint before it converts the module, and so would round them.
        module.double()
    directory = _directory(options)
    _announce(options, data, encoder, directory)

    loaders = _loaders(options, data, encoder)
    logger = TensorBoardLogger(directory.parent, name=directory.name, version="", default_hp_metric=False)
    stop = StopOnSignal(directory / LAST)
    checkpoints = _checkpoints(directory, "train/total" if loaders.val is None else "val/total")
    trainer = Trainer(
        accelerator=accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(options),
        precision=_PRECISIONS[options.precision],  # type: ignore[arg-type]
        max_epochs=options.epochs,
        logger=logger,
        callbacks=[Progress(), *_monitors(options, data, loaders), *checkpoints, stop],
        plugins=[CheckpointFiles()],
        default_root_dir=directory,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        limit_val_batches=0.0 if loaders.val is None else 1.0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    with _told_of_files(directory), stop, warnings.catch_warnings():
        if trainer.is_global_zero:
            # What --config reads. Lightning would write it, too, but not in one step, nor anew for a resumed run.
            about = yaml.safe_dump(replace(options, resume=None).to_dict(), sort_keys=False)
            replace_file(directory / logger.NAME_HPARAMS_FILE, about)
        # Means are logged once an epoch, not every so many steps; loaders have a thread of their own.
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        # What only the first process logs is of the first process only.
        warnings.filterwarnings("ignore", message=".*It is recommended to use .self.log.*sync_dist=True.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            trainer.fit(module, datamodule=loaders, ckpt_path=options.resume)
        except Interrupted:
            raise
        except Exception as error:
            # Ctrl-C reaches the compilers that torch.compile has started too: what breaks then is no error of the run.
            if stop.signum is None:
                raise
            saved = directory / LAST
            raise Interrupted(saved if saved.exists() else None, stop.signum, cut_short=True) from error
    if stop.signum is not None:
        raise Interrupted(directory / LAST, stop.signum)
    # Where nothing was left to fit, nothing was measured.
    measured = resumed.metrics if resumed is not None and is_trained else trainer.callback_metrics
    metrics = {name: float(value) for name, value in measured.items()}
    device = trainer.strategy.root_device
    if torch.distributed.is_initialized():
        # From here on the first process works alone, and its loaders have to see all crystals.
        torch.distributed.destroy_process_group()
    summary = None
    if trainer.is_global_zero:
        _logger.info("trained and saved; comparing it with the untrained encoder, which Ctrl-C leaves out")
        notes = coverage_notes(metrics)
        if options.data == TrainOptions.data:
            notes.append(
                "these crystals are hypothetical, and serve to try the program; docs/results.md is about real ones"
            )
        with _told_of_files(directory):
            summary = _summarise(options, data, module, untrained, metrics, notes, directory, device)
            if summary is not None:
                metrics |= probe_metrics(summary)
            _log_final(directory, options, data, metrics, trainer.global_step)
        _logger.info("saved in %s; see it with: tensorboard --logdir %s", directory, directory.parent)
    return RunResult(directory, metrics, summary)


@contextlib.contextmanager
def _told_of_files(directory: Path) -> Iterator[None]:
    """Tell the user of a disk that is full, or may not be written to, in words."""
    try:
        yield
    except (FileNotFoundError, BrokenPipeError):
        raise
    except OSError as error:
        last = directory / LAST
        kept = (
            f"what was saved stays: make room, and go on with --resume {last}" if last.exists() else "nothing is lost"
        )
        raise ValueError(f"cannot write to {directory}: {error.strerror or error}; {kept}") from error


def _strategy(options: TrainOptions) -> DDPStrategy | str:
    if options.devices * options.num_nodes == 1:
        return "auto"
    # Other objectives leave the critics of an encoder without gradient, and so does InfoNCE where a batch (of one
    # crystal) has no false sample; other processes would wait for these gradients. Jensen-Shannon losses always reach
    # all parameters.
    unused = "deep_infomax" not in options.objectives or options.encoder.get("estimator") == "info_nce"
    return DDPStrategy(find_unused_parameters=unused)


def _directory(options: TrainOptions) -> Path:
    """Folder of the run: that of the checkpoint to resume, or a new one with the first free number."""
    if options.resume is not None:
        return Path(options.resume).parent
    logdir = Path(options.logdir)
    directory = logdir / (options.name or f"{options.run_name}-1")
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return directory  # only the first process writes
    if options.name is not None and (directory / LAST).exists():
        raise ValueError(f"{directory} holds a run already: choose another --name, or --resume {directory / LAST}")
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        if options.name is not None:
            directory.mkdir(exist_ok=True)
            return directory
        for number in count(1):
            # Made at once, so that a run that starts at the same time gets another number.
            directory = logdir / f"{options.run_name}-{number}"
            with contextlib.suppress(FileExistsError):
                directory.mkdir()
                break
    except OSError as error:
        raise ValueError(f"cannot make the folder {directory} of the run: {error.strerror}; choose --logdir") from error
    return directory


def _announce(options: TrainOptions, data: RunData, encoder: models.Encoder, directory: Path) -> None:
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    limited = "" if options.limit is None else f" (--limit {options.limit})"
    _logger.info("data: %d crystals, %d sites%s", len(data.dataset), data.dataset.z.numel(), limited)
    _logger.info("split: %d crystals to train on, %d to validate on", data.train.numel(), data.val.numel())
    _logger.info("model: %s, %d parameters; objective: %s", encoder.name, parameters, options.objective)
    _logger.info("run: %s", directory)


def _loaders(options: TrainOptions, data: RunData, encoder: models.Encoder) -> CrystalData:
    targets = options.targets if "supervised" in options.objectives else []

    def loader(rows: Tensor) -> CrystalLoader:
        return CrystalLoader(
            data.dataset.subset(rows), encoder.graph, options.batch_sites, options.seed, targets=targets
        )

    return CrystalData(loader(data.train), loader(data.val) if data.val.numel() else None)


def _monitors(options: TrainOptions, data: RunData, loaders: CrystalData) -> list[Callback]:
    """What is shown of the representations: those of the validation part, or of the training part without one."""
    shown = loaders.train if loaders.val is None else loaders.val
    target = options.targets[0] if options.targets else None
    charts = [LossCharts()] if "deep_infomax" in options.objectives else []
    return [*charts, RepresentationMonitor(shown), EmbeddingProjector(shown, target)]


def _checkpoints(directory: Path, monitor: str) -> list[Callback]:
    """Two files, each replaced whole: the state after the last epoch, and that of the lowest loss."""

    def keep(file: str, monitor: str | None) -> ModelCheckpoint:
        return ModelCheckpoint(
            dirpath=directory,
            filename=file.removesuffix(".ckpt"),
            monitor=monitor,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    return [keep(BEST, monitor), keep(LAST, None)]


def _summarise(
    options: TrainOptions,
    data: RunData,
    module: TrainingModule,
    untrained: dict[str, Tensor],
    metrics: dict[str, float],
    notes: list[str],
    directory: Path,
    device: torch.device,
) -> pd.DataFrame | None:
    if not data.val.numel():
        _logger.warning("no validation part, so no comparison with the untrained encoder")
        return None
    trained = module.encoder
    before = models.build(trained.name, **trained.config)
    # Vectors of the elements that a checkpoint brought are no part of what is trained.
    given = {name: value for name, value in trained.named_buffers() if untrained[name].isnan().any()}
    before.load_state_dict(untrained | given)
    before.to(next(trained.parameters()).dtype)
    before.set_kernels(trained.kernels)
    return summarise(
        trained,
        before,
        data.dataset,
        data.train,
        data.val,
        _without_detail(metrics),
        options.targets or None,
        notes=notes,
        directory=directory,
        seed=options.seed,
        batch_sites=options.batch_sites,
        device=device,
    )


def _log_final(directory: Path, options: TrainOptions, data: RunData, metrics: dict[str, float], step: int) -> None:
    """Log probe errors, and the options with all final metrics for the HParams page."""
    with SummaryWriter(str(directory)) as writer:
        for name, value in metrics.items():
            if name.startswith("probe/"):
                writer.add_scalar(name, value, step)
        # The page takes the last value of each tag from the curves, which are in this folder already.
        for part in hparams(_flat(options.to_dict()) | {"crystals": len(data.dataset)}, _without_detail(metrics)):
            writer.file_writer.add_summary(part)


def _without_detail(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("detail/")}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
