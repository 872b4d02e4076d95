"""Callbacks that show representations in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.evaluate.families import chemical_families, element_count
from pyg_dim.evaluate.figures import FEWEST, tsne_figure
from pyg_dim.evaluate.intrinsic import DENSITY, ELECTRONEGATIVITY, intrinsic_targets
from pyg_dim.evaluate.report import UNITS
from pyg_dim.evaluate.represent import represent
from pyg_dim.level import Level
from pyg_dim.losses import ESTIMATORS
from pyg_dim.models import Encoder

MOST_CRYSTALS = 2000
"""Enough for statistics; the projector and t-SNE become slow, and no clearer, with more."""

SPREAD_FLOOR = 0.01
"""A dimension is collapsed when its standard deviation is below this share of the root mean square of all entries."""

FEWEST_TO_SPREAD = 2
"""Fewer crystals have no spread to measure."""

ALARM = 0.5
"""Share of collapsed dimensions at which a warning is given."""


class LossCharts(Callback):
    """Put the losses of a level and their baseline into one chart, on the page "Custom Scalars"."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout of the page."""
        charts = {
            f"{name}/{where}": ["Multiline", [f"train/{name}/{where}", f"val/{name}/{where}", f"baseline/{name}"]]
            for name in sorted({ESTIMATORS[m.estimator] for m in pl_module.modules() if isinstance(m, Level)})
            for where in ("local", "global")
        }
        for writer in _writers(trainer):
            writer.add_custom_scalars({"losses": charts})


class RepresentationMonitor(Callback):
    """Log how far the global representations of different crystals spread: an alarm for collapse.

    Scalars: ``representation/std_mean`` and ``representation/std_min``, the mean and the least standard deviation of a
    dimension over the crystals; ``representation/collapsed_fraction``, the share of dimensions with a standard
    deviation below 1 % of the root mean square of all entries; ``representation/effective_rank``, the exponential of
    the entropy of the normalised eigenvalues of the covariance (Roy and Vetterli 2007): D when all dimensions vary
    independently, 1 when they all say the same, 0 when nothing varies. ``representation/std`` is the histogram over
    the dimensions. When half of the dimensions have collapsed, a warning is given, once. Crystals whose representation
    is not finite are left out; a warning, given once, says how many.

    The module must have the attribute ``encoder``. Only the first process computes.

    Args:
        loader: The crystals, those of the validation for example; 2000 of them are drawn if there are more.
        every_n_epochs: Epochs between two measurements.

    Raises:
        ValueError: If ``every_n_epochs`` is below 1.
    """

    def __init__(self, loader: CrystalLoader, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.loader = _sample(loader)
        self.every_n_epochs = every_n_epochs
        self._warned: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the crystals, which are few, to the device: they are represented after every epoch."""
        self.loader.dataset = self.loader.dataset.to(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or not trainer.is_global_zero:
            return
        vectors, _ = represent(cast(Encoder, pl_module.encoder), self.loader, "global")
        finite = torch.isfinite(vectors).all(dim=1)
        if not finite.all():
            self._warn_once(
                "not finite",
                f"the representation of {int((~finite).sum())} of {finite.numel()} crystals is not finite; they are "
                "left out of its statistics, and a lower learning rate may help",
            )
            vectors = vectors[finite]
        if vectors.size(0) < FEWEST_TO_SPREAD:
            return
        spread, scalars = representation_statistics(vectors)
        for name, value in scalars.items():
            pl_module.log(f"representation/{name}", value, rank_zero_only=True, logger=False)
        for writer in _writers(trainer):
            # At once, and so before the checkpoint of the epoch, behind which a run that is killed goes on.
            for name, value in scalars.items():
                writer.add_scalar(f"representation/{name}", value, trainer.global_step - 1)
            writer.add_histogram("representation/std", spread, trainer.global_step)
        if scalars["collapsed_fraction"] >= ALARM:
            self._warn_once(
                "collapsed",
                f"the representation has collapsed: {scalars['collapsed_fraction']:.0%} of its dimensions are the same "
                "for all crystals; a lower learning rate or a smaller weight of the KL term may help",
            )

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            rank_zero_warn(text)


class EmbeddingProjector(Callback):
    """Show the global representations in the embedding projector and as a t-SNE map when training ends.

    The metadata of the projector are id, formula, number of elements, chemical family
    (:func:`pyg_dim.evaluate.families.chemical_families`), mean electronegativity, density and the labels. The map is
    drawn twice, coloured by the chemical family and by the first label, or the mean electronegativity without one.

    The module must have the attribute ``encoder``. Only the first process computes.

    Args:
        loader: The crystals, those of the validation for example; 2000 of them are drawn if there are more.
        target: Label that colours the map; the most frequent one by default.

    Raises:
        ValueError: If the target is no label of the data set.
    """

    def __init__(self, loader: CrystalLoader, target: str | None = None) -> None:
        if target is not None:
            loader.dataset.target(target)  # a wrong name should be known before training, not after
        self.loader = _sample(loader)
        self.target = target

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Represent, write the projector's files and draw the map."""
        writers = _writers(trainer)
        if not trainer.is_global_zero or not writers:
            return
        vectors, rows = represent(cast(Encoder, pl_module.encoder), self.loader, "global")
        finite = torch.isfinite(vectors).all(dim=1)
        if not finite.all():
            rank_zero_warn(f"{int((~finite).sum())} crystals are not shown: their representation is not finite")
            vectors, rows = vectors[finite], rows[finite]
        if not rows.numel():
            return
        vectors, shown = vectors.float(), self.loader.dataset.subset(rows)
        header, metadata = chemistry_metadata(shown)
        figure = None
        if rows.numel() >= FEWEST:
            values, name = _overlay(shown, self.target)
            figure = tsne_figure(vectors, chemical_families(shown), values, name, f"t-SNE of {rows.numel()} crystals")
        for writer in writers:
            writer.add_embedding(
                vectors, metadata, metadata_header=header, global_step=trainer.global_step, tag="representation"
            )
            if figure is not None:
                writer.add_figure("representation/tsne", figure, trainer.global_step, close=False)


def representation_statistics(vectors: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Measure the spread of representations over crystals.

    Args:
        vectors: [n, D] finite representations.

    Returns:
        The standard deviation of each dimension [D] and the scalars ``std_mean``, ``std_min``, ``collapsed_fraction``
        and ``effective_rank`` (:class:`RepresentationMonitor`).
    """
    x = vectors.double()
    spread = x.std(dim=0, correction=0)
    alive = spread > SPREAD_FLOOR * x.square().mean().sqrt()
    return spread, {
        "std_mean": float(spread.mean()),
        "std_min": float(spread.min()),
        "collapsed_fraction": float((~alive).double().mean()),
        "effective_rank": _effective_rank(x),
    }


def _effective_rank(x: Tensor) -> float:
    power = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    total = power.sum()
    return float(torch.special.entr(power / total).sum().exp()) if total > 0 else 0.0


def chemistry_metadata(dataset: CrystalDataset) -> tuple[list[str], list[list[str]]]:
    """Describe crystals for the embedding projector.

    Args:
        dataset: The crystals.

    Returns:
        The names of the columns, and one list of texts for each crystal. A missing label is an empty text.
    """
    numbers = intrinsic_targets(dataset)
    columns: dict[str, Sequence[str]] = {
        "id": [_one_line(str(name)) for name in dataset.ids.to_pylist()],
        "formula": [dataset.formula(row) for row in range(len(dataset))],
        "elements": [str(count) for count in element_count(dataset).tolist()],
        "family": chemical_families(dataset),
        # Formulas have no density.
        **{_with_unit(name): _texts(numbers[name]) for name in (ELECTRONEGATIVITY, DENSITY) if name in numbers},
    }
    columns |= {_one_line(_with_unit(name)): _texts(values) for name, values in dataset.labels.items()}
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _overlay(dataset: CrystalDataset, target: str | None) -> tuple[Tensor, str]:
    if target is None and dataset.labels:
        target = max(dataset.labels, key=lambda name: int(torch.isfinite(dataset.labels[name]).sum()))
    if target is not None:
        return dataset.target(target), _with_unit(target)
    return intrinsic_targets(dataset)[ELECTRONEGATIVITY], _with_unit(ELECTRONEGATIVITY)


def _sample(loader: CrystalLoader) -> CrystalLoader:
    """Make a loader of the same kind for at most :data:`MOST_CRYSTALS` crystals, all of them in this process."""
    dataset = loader.dataset
    if len(dataset) > MOST_CRYSTALS:
        # At random: neighbours in a file are often alike. The same ones in every run of the data set.
        drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:MOST_CRYSTALS]
        dataset = dataset.subset(drawn.sort().values)
    return CrystalLoader(dataset, loader.graph, batch_sites=loader.batch_sites, shuffle=False, shard=False)


def _writers(trainer: Trainer) -> list[SummaryWriter]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _with_unit(name: str) -> str:
    return f"{name} ({UNITS[name]})" if name in UNITS else name


def _texts(values: Tensor) -> list[str]:
    return ["" if value != value else f"{value:.5g}" for value in values.tolist()]


def _one_line(text: str) -> str:
    # The projector reads tab separated lines.
    return " ".join(text.split())
