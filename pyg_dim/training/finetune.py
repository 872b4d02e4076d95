"""Fine-tuning of an encoder on few labels."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.models.encoder import READOUTS, Encoder, Readout
from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.objectives.supervised import HEADS, LABEL_LOSSES, Head, LabelLoss, Supervised
from pyg_dim.training.loaders import EpochBatches

PREDICT_SITES: Final = 1200
"""Sites of a batch without gradient."""
NEGLIGIBLE: Final = 0.01
"""Share of its first weight below which the Deep InfoMax loss is left out: it costs more than all else in a step."""


@dataclass(frozen=True)
class FineTuneOptions:
    """How an encoder is fine-tuned; plain values only.

    Attributes:
        epochs: passes over the labels, at most.
        patience: epochs without a lower hold-out error after which it stops; those with a frozen encoder do not count.
        holdout: share of the n labels that is held out for early stopping; at least one label, and never all.
        batch_sites: sites of a batch. Small, so that few labels make several steps an epoch.
        lr: learning rate of the head.
        encoder_lr: learning rate of the encoder.
        weight_decay: weight decay of both.
        frozen_epochs: epochs in which the head learns alone.
        dim_weight: weight of the Deep InfoMax loss on the labelled crystals, in the first epoch that the encoder learns
            in; 0 for none. Its levels are isolated, as in pre-training.
        dim_decay: factor of that weight from one epoch to the next; below a hundredth of the first one it is left out.
        readout: what the head sees, "global" or "full"; see :meth:`pyg_dim.models.Encoder.readout`.
        loss: on normalised labels, "l1", "mse" or "robust_l1"; early stopping goes by the mean absolute error.
        head: "hidden" or "residual", see :class:`~pyg_dim.objectives.supervised.Supervised`.
        head_channels: width of the last hidden layer of the head.
        log_target: learn the logarithm of the label: for positive labels that spread over orders of magnitude.

    Raises:
        ValueError: a value out of range.
    """

    epochs: int = 200
    patience: int = 20
    holdout: float = 0.2
    batch_sites: int = 120
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    weight_decay: float = 1e-4
    frozen_epochs: int = 0
    dim_weight: float = 0.0
    dim_decay: float = 0.8
    readout: Readout = "global"
    loss: LabelLoss = "l1"
    head: Head = "hidden"
    head_channels: int = 64
    log_target: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_sites", "head_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.frozen_epochs <= self.epochs:
            raise ValueError(f"frozen_epochs must lie between 0 and epochs ({self.epochs}), not {self.frozen_epochs}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is a share of the labels, between 0 and 1, not {self.holdout}")
        for name in ("lr", "encoder_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        for name in ("weight_decay", "dim_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if not 0 < self.dim_decay <= 1:
            raise ValueError(f"dim_decay must lie in (0, 1], not {self.dim_decay}")
        for name, known in (("readout", READOUTS), ("loss", LABEL_LOSSES), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class FineTuneResult:
    """What a fine-tuned encoder predicts, with the parameters of the lowest hold-out error.

    Attributes:
        predictions: [t] float64 on the CPU, of the test rows in their order, in the unit of the label.
        test_mae: mean absolute error over the test rows that have a label, in its unit.
        holdout_mae: mean absolute error over the labels that were held out.
        epochs: epochs that were run.
        best_epoch: number of the epoch of the lowest hold-out error, from 1.
    """

    predictions: Tensor
    test_mae: float
    holdout_mae: float
    epochs: int
    best_epoch: int


def fine_tune(
    encoder: Encoder,
    dataset: CrystalDataset,
    target: str,
    rows: Tensor,
    test_rows: Tensor,
    options: FineTuneOptions | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FineTuneResult:
    """Train a copy of an encoder with a new head on the labels of some rows, and predict others.

    Some of the labels are held out; the parameters of the epoch with the lowest mean absolute error on them are kept.
    The seed fixes which these are, the order of the batches, the head and all that is drawn in training; on a CPU with
    one thread the same seed gives the same bits. PyTorch's own random state is left as it was.

    The encoder computes in the precision of the data set. Its parts that no label reaches (critics and noise of the
    levels) are trained where ``dim_weight`` is above 0 only.

    Args:
        encoder: where training starts; it is left as it is. Its kernels stay on or off.
        dataset: crystals.
        target: name of the label.
        rows: [n] int64, the labelled rows, each once; at least two.
        test_rows: [t] int64, rows to predict, none of them in ``rows``.
        options: how to train; the defaults where None.
        seed: seed of this fit, not negative.
        device: where to compute.

    Returns:
        Predictions and errors.

    Raises:
        ValueError: no such target, rows without a label, rows that are given twice or are in both parts, too few of
            them, or labels without a logarithm where one is asked for; the message names the row.
        FloatingPointError: the hold-out error was not a number in any epoch.

    Source: Moran et al., Digital Discovery 2025, 4, 790, fig. 7 and S1 (few labels, from several starts).
    """
    options = FineTuneOptions() if options is None else options
    device = torch.device(device)
    rows = rows.sort().values
    labels = dataset.target(target).cpu()
    _require_rows(labels, target, rows, test_rows, options.log_target)
    if options.log_target:
        dataset = dataset.with_labels({target: dataset.target(target).log()})
    held = np.random.default_rng([seed, rows.numel()]).permutation(rows.numel())
    count = min(max(round(options.holdout * rows.numel()), 1), rows.numel() - 1)
    training, holdout = rows[held[count:]].sort().values, rows[held[:count]].sort().values

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _quiet():
        torch.manual_seed(seed)
        objective = Supervised(
            deepcopy(encoder), [target], options.loss, options.head_channels, options.readout, options.head
        )
        objective.fit_labels(dataset.target(target)[training, None].cpu())
        objective.to(device, dataset.pos.dtype)

        def loader(chosen: Tensor, sites: int, train: bool = False) -> CrystalLoader:
            part, targets = dataset.subset(chosen).to(device), [target] if train else []
            return CrystalLoader(part, encoder.graph, sites, seed, shuffle=train, targets=targets, shard=False)

        # A few batches, of which the graphs are wanted at every epoch.
        held_out = list(loader(holdout, PREDICT_SITES))
        best = _KeepBest(held_out, labels[holdout], options)
        trainer = Trainer(
            accelerator="cpu" if device.type == "cpu" else "cuda",
            devices=1 if device.type == "cpu" else [device.index or 0],
            max_epochs=options.epochs,
            callbacks=[best],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        # Encoders that are read from a file come in evaluation mode, of which Lightning would warn.
        objective.train()
        trainer.fit(_FineTuning(objective, loader(training, options.batch_sites, train=True), options))
        if not best.state:
            raise FloatingPointError(
                f"the hold-out error was no finite number in {best.epochs} epochs: try an lr and an encoder_lr below "
                f"{options.lr:g} and {options.encoder_lr:g}"
            )
        # Lightning takes a module from the device when it has fitted it.
        objective.to(device).load_state_dict(best.state)
        predictions = _predict(objective, loader(test_rows, PREDICT_SITES), options.log_target)
    return FineTuneResult(predictions, _mae(predictions, labels[test_rows]), best.error, best.epochs, best.epoch)


class _FineTuning(LightningModule):
    """Steps and optimiser of a fit."""

    def __init__(self, objective: Supervised, loader: CrystalLoader, options: FineTuneOptions) -> None:
        super().__init__()
        self.objective = objective
        self.loader = loader
        self.options = options
        # Isolated, as in pre-training: the loss that the encoder comes from, not one that draws its levels elsewhere.
        # Labels reach all levels all the same, by a pass of their own.
        self.dim = DeepInfoMax(objective.encoder) if options.dim_weight else None
        self._encoder_parameters = [p for p in objective.encoder.parameters() if p.requires_grad]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with AMSGrad, as in pre-training, with a learning rate for each part."""
        groups = [
            {"params": self._encoder_parameters, "lr": self.options.encoder_lr},
            {"params": self.objective.head.parameters(), "lr": self.options.lr},
        ]
        return torch.optim.AdamW(groups, weight_decay=self.options.weight_decay, eps=1e-7, amsgrad=True)

    def train_dataloader(self) -> EpochBatches:
        """Batches of the present epoch; asked for at each."""
        return EpochBatches(self.loader, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Freeze the encoder, or let it learn."""
        frozen = self.current_epoch < self.options.frozen_epochs
        self.objective.train()
        # In evaluation mode too: running statistics and dropout are part of what must not move.
        self.objective.encoder.train(not frozen)
        for parameter in self._encoder_parameters:
            parameter.requires_grad_(not frozen)

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self.objective(batch)["total"]
        faded = self.options.dim_decay ** (self.current_epoch - self.options.frozen_epochs)
        if self.dim is not None and self.current_epoch >= self.options.frozen_epochs and faded >= NEGLIGIBLE:
            loss = loss + self.options.dim_weight * faded * self.dim(batch)["total"]
        return loss


class _KeepBest(Callback):
    """Measures the hold-out error after every epoch, keeps the best parameters in memory, and stops in time.

    Args:
        batches: the crystals that are held out.
        labels: their labels, in their unit.
        options: patience and log_target.
    """

    def __init__(self, batches: list[CrystalBatch], labels: Tensor, options: FineTuneOptions) -> None:
        self.batches, self.labels, self.options = batches, labels, options
        self.error = math.inf
        self.epoch = self.epochs = 0
        self.state: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the error of the epoch."""
        assert isinstance(pl_module, _FineTuning)  # noqa: S101
        objective = pl_module.objective
        self.epochs += 1
        error = _mae(_predict(objective, self.batches, self.options.log_target), self.labels)
        if error < self.error:
            self.error, self.epoch = error, self.epochs
            self.state = {name: value.clone() for name, value in objective.state_dict().items()}
        elif self.epochs - max(self.epoch, self.options.frozen_epochs) >= self.options.patience:
            trainer.should_stop = True


def _predict(objective: Supervised, batches: Iterable[CrystalBatch], log_target: bool) -> Tensor:
    """[n] float64 on the CPU, in the unit of the label."""
    objective.eval()
    with torch.no_grad():
        values = torch.cat([objective.predict(batch)[:, 0].double() for batch in batches]).cpu()
    return values.exp() if log_target else values


def _mae(predictions: Tensor, labels: Tensor) -> float:
    known = labels.isfinite()
    return float((predictions - labels)[known].abs().mean())


def _require_rows(labels: Tensor, target: str, rows: Tensor, test_rows: Tensor, log_target: bool) -> None:
    """Refuse rows that would make a fit meaningless."""
    for name, given, least in (("rows", rows, 2), ("test_rows", test_rows, 1)):
        if given.numel() < least:
            raise ValueError(f"{name} has {given.numel()} rows; fine-tuning needs at least {least} there")
    if (twice := rows[1:][rows[1:] == rows[:-1]]).numel():
        raise ValueError(f"row {int(twice[0])} is in rows twice: give each labelled row once")
    if (shared := rows[torch.isin(rows, test_rows)]).numel():
        raise ValueError(f"row {int(shared[0])} is in rows and in test_rows: a test must not see its own labels")
    if (missing := rows[~labels[rows].isfinite()]).numel():
        raise ValueError(f"row {int(missing[0])} of rows has no label {target!r}; see draw_labels")
    if log_target and (low := rows[labels[rows] <= 0]).numel():
        raise ValueError(
            f"log_target needs positive labels; {target!r} of row {int(low[0])} is {float(labels[low[0]]):g}"
        )
    if not labels[test_rows].isfinite().any():
        raise ValueError(f"no row of test_rows has a label {target!r}: there is no error to measure")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling, at each of many fits, what devices there are and why it stopped."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning's own use of torch.
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
