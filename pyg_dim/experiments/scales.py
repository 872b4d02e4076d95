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
        ablation_crystals: Crystals drawn for the ablation, four fifths of which are in the training fold; None for all.
        ablation_epochs: Their epochs.
        supervised_epochs: Epochs of the supervised model of another target.
        draws: Label subsets for each number of labels, of probes.
        transfer_draws: The same, of fine-tuning.
        pool: Training crystals that labels are drawn from; None for all.
        tsne_crystals: Crystals of a t-SNE map.
    """

    crystals: int | None
    epochs: int
    ablation_crystals: int | None
    ablation_epochs: int
    supervised_epochs: int
    draws: int
    transfer_draws: int
    pool: int | None
    tsne_crystals: int


SCALES: Final = {
    "smoke": Scale(100, 1, 40, 1, 1, 2, 1, 1500, 40),
    "small": Scale(None, 36, 12_500, 4, 4, 20, 12, 4000, 2000),
    "full": Scale(None, 100, None, 12, 12, 100, 12, None, 10_000),
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

FINE_TUNING: Final = {
    50: FineTuneOptions(epochs=60, patience=15, batch_sites=240, readout="full"),
    100: FineTuneOptions(epochs=60, patience=15, batch_sites=240, readout="full"),
    250: FineTuneOptions(epochs=60, patience=12, batch_sites=480, readout="full"),
    1000: FineTuneOptions(epochs=40, patience=10, batch_sites=960, readout="full"),
}
"""By number of labels, the same for all starts; patience, not the number of epochs, ends most fits."""
