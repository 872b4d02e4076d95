"""How much of an experiment is computed, and how encoders are pre-trained for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pyg_dim.objectives.deep_infomax import DEFAULT_KINDS
from pyg_dim.training.finetune import FineTuneOptions


@dataclass(frozen=True)
class Scale:
    """Numbers of an experiment.

    Attributes:
        crystals: Crystals drawn for pre-training, four fifths of which are in the training fold; None for all.
        epochs: Of pre-training on them.
        more_epochs: Of pre-training on more crystals.
        ablation_crystals: Crystals drawn for the ablation, four fifths of which are in the training fold; None for all.
        ablation_epochs: Their epochs.
        lever_epochs: Epochs of the encoders that differ in one lever, on the crystals of the ablation.
        supervised_epochs: Epochs of the supervised model of another target.
        draws: Label subsets for each number of labels, of probes.
        transfer_draws: The same, of fine-tuning.
        pool: Training crystals that labels are drawn from; None for all.
        tsne_crystals: Crystals of a t-SNE map.
    """

    crystals: int | None
    epochs: int
    more_epochs: int
    ablation_crystals: int | None
    ablation_epochs: int
    lever_epochs: int
    supervised_epochs: int
    draws: int
    transfer_draws: int
    pool: int | None
    tsne_crystals: int


SCALES: Final = {
    "smoke": Scale(100, 1, 1, 40, 1, 1, 1, 2, 1, 1500, 40),
    "small": Scale(None, 36, 12, 12_500, 4, 8, 4, 20, 12, 4000, 2000),
    "full": Scale(None, 100, 36, None, 12, 36, 12, 100, 12, None, 10_000),
}
"""By name; "smoke" shows in minutes that all of it runs, and its numbers mean nothing."""

_COMMON: Final[dict[str, Any]] = {"lr": 1e-3, "schedule": "cosine"}
_WIDE: Final = {"tolerance": 1e-4, "pre_pool": [128, 256], "post_pool": [256, 256]}
RECIPES: Final[dict[str, dict[str, Any]]] = {
    "dim": _COMMON | {"encoder": {"tolerance": 1e-4}},
    "combined": _COMMON
    | {"objective": "deep_infomax+fingerprint", "fingerprints": "magpie,radial", "readout": "full", "encoder": _WIDE},
}
"""Options of pre-training by name: ``dim``, the paper's but for learning rate and schedule; ``combined``, with
intrinsic fingerprints beside Deep InfoMax and a wider global representation."""

ABLATIONS: Final[dict[str, dict[str, Any]]] = {
    "other": {"kinds": "other"},
    **{f"other+{kind}": {"kinds": f"other,{kind}"} for kind in DEFAULT_KINDS if kind != "other"},
    "all": {},
    "all, no noise": {"encoder": {"tolerance": 1e-4, "noise": "none"}},
    "all, joint levels": {"isolate": False},
}
"""What differs from ``dim``, by name."""
LEVERS: Final[dict[str, dict[str, Any]]] = {
    "combined": {},
    "no fingerprints": {"objective": "deep_infomax"},
    "no Deep InfoMax": {"objective": "fingerprint"},
    "and Barlow Twins": {"objective": "deep_infomax+fingerprint+barlow_twins"},
    "narrow": {"encoder": {"tolerance": 1e-4}},
    "two blocks": {"encoder": _WIDE | {"blocks": 2}},
}
"""What differs from ``combined``, by name."""

FINE_TUNING: Final = {
    50: FineTuneOptions(epochs=60, patience=15, batch_sites=240, readout="full"),
    100: FineTuneOptions(epochs=60, patience=15, batch_sites=240, readout="full"),
    250: FineTuneOptions(epochs=60, patience=12, batch_sites=480, readout="full"),
    1000: FineTuneOptions(epochs=40, patience=10, batch_sites=960, readout="full"),
}
"""By number of labels, the same for all starts; patience, not the number of epochs, ends most fits."""
TUNING_LEVERS: Final[dict[str, dict[str, Any]]] = {
    "combined": {},
    "head first": {"frozen_epochs": 10},
    "kept Deep InfoMax": {"dim_weight": 0.1},
    "one learning rate": {"encoder_lr": 1e-3},
    "global readout": {"readout": "global"},
}
"""What differs from :data:`FINE_TUNING`, by name."""


@dataclass(frozen=True)
class FormulaScale:
    """Numbers of the experiments on formulas.

    Attributes:
        formulas: Formulas drawn for pre-training; None for all.
        epochs: Of pre-training on them.
        structures: Crystals drawn for the pre-training of the teacher; None for all.
        teacher_epochs: Its epochs.
        folds: Of Matbench's five, how many are measured.
        tuning_rate: Learning rate of fine-tuning, of encoder and head; 3e-4 in the published program.
        tuning_epochs: Of fine-tuning, at most.
        tuning_steps: Of fine-tuning, at most, where that is less.
        patience_steps: Steps without a lower hold-out error after which it stops, ten epochs at least.
        sizes: Numbers of labels of the curves of data efficiency.
        curve_folds: Folds of these curves.
        tsne_formulas: Formulas of a t-SNE map.
        blended: Size of a set up to which ``blend`` is fitted, too: its Gaussian process takes the third power of it.
    """

    formulas: int | None
    epochs: int
    structures: int | None
    teacher_epochs: int
    folds: int
    tuning_rate: float
    tuning_epochs: int
    tuning_steps: int
    patience_steps: int
    sizes: tuple[int, ...]
    curve_folds: int
    tsne_formulas: int
    blended: int

    def fine_tuning(self, labels: int, sites: float) -> FineTuneOptions:
        """How Roost is fine-tuned, the same from all starts.

        AdamW with weight decay 1e-6, mean absolute error on standardised labels, and batches of 128 formulas are those
        of the published program. Below a thousand labels batches have 32 formulas, so that an epoch has more than a
        step or two. A tenth of the labels is held out for early stopping, which the published program does without;
        patience is counted in steps, of which small sets have few in an epoch.

        Args:
            labels: Labels to learn from.
            sites: Elements of a formula, on average.

        Returns:
            The options.
        """
        formulas = 32 if labels < 1000 else 128
        steps = max(1, round(0.9 * labels / formulas))
        return FineTuneOptions(
            epochs=max(1, min(self.tuning_epochs, self.tuning_steps // steps)),
            patience=max(10, self.patience_steps // steps),
            holdout=0.1,
            batch_sites=round(formulas * sites),
            lr=self.tuning_rate,
            encoder_lr=self.tuning_rate,
            weight_decay=1e-6,
            head="residual",
        )


FORMULA_SCALES: Final = {
    "smoke": FormulaScale(
        formulas=200, epochs=1, structures=40, teacher_epochs=1, folds=2, tuning_rate=1e-3, tuning_epochs=1,
        tuning_steps=1000, patience_steps=100, sizes=(50, 100), curve_folds=2, tsne_formulas=40,
        blended=0,
    ),
    "small": FormulaScale(
        formulas=20_000, epochs=10, structures=8000, teacher_epochs=4, folds=5, tuning_rate=1e-3, tuning_epochs=150,
        tuning_steps=1000, patience_steps=300, sizes=(500, 1000, 2000, 4000), curve_folds=3, tsne_formulas=1000,
        blended=1500,
    ),
    "full": FormulaScale(
        formulas=None, epochs=10, structures=None, teacher_epochs=36, folds=5, tuning_rate=3e-4, tuning_epochs=100,
        tuning_steps=100_000, patience_steps=100_000, sizes=(500, 1000, 2000, 4000), curve_folds=5, tsne_formulas=5000,
        blended=5000,
    ),
}  # fmt: skip
"""By name, as :data:`SCALES`; "full" has the numbers of the published program."""

FORMULA_PRETRAINING: Final[dict[str, Any]] = _COMMON | {
    "model": "roost", "batch_sites": 1000, "split": "random", "val_fraction": 0.05, "weight_decay": 1e-6,
    "encoder": {},
}  # fmt: skip
"""What pre-training of Roost has in common, whatever its objective; about 250 formulas a batch."""
STRATEGIES: Final[dict[str, dict[str, Any]]] = {
    "SSL": {"objective": "barlow_twins"},
    "FL": {"objective": "fingerprint"},
    "MML": {"objective": "distillation"},
    "DIM": {"objective": "deep_infomax"},
    "SSL+FL": {"objective": "barlow_twins+fingerprint"},
}
"""Strategies of pre-training: the three of Huang et al., Deep InfoMax, and the sum of the two that need a formula
alone."""
