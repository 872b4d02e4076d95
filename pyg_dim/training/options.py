"""Every option of a run: a field here is a flag of the command and a key of its YAML file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from pyg_dim.data.fingerprints import FINGERPRINTS
from pyg_dim.false_samples.transplant import DonorRule
from pyg_dim.models.encoder import Readout
from pyg_dim.objectives.deep_infomax import DEFAULT_KINDS, KINDS
from pyg_dim.objectives.supervised import Head, LabelLoss
from pyg_dim.training.devices import Accelerator
from pyg_dim.training.schedules import Schedule

OBJECTIVES: Final = ("deep_infomax", "fingerprint", "barlow_twins", "distillation", "supervised")
"""Objectives by name."""
Precision = Literal["16", "32", "64", "bf16"]

CHANGEABLE: Final = frozenset(
    {"epochs", "precision", "accelerator", "compile", "data", "teacher", "teacher_atoms", "logdir", "name", "init",
     "resume", "readout"}
)  # fmt: skip
"""Options that a resumed run may change: where and how long it computes and what it hands on, not what it computes.

Crystals and teacher may lie elsewhere, but have to be the same.

The number of devices stays: each has batches of its own, and the position among them is saved once. ``logdir`` and
``name`` may only say where the run lies already.
"""
CRYSTAL_TWINS: Final = (".pth", ".npz")
"""Endings of the files of Crystal Twins."""
SEEDS: Final = 2**32
"""Seeds are below this number, so that every generator of random numbers takes them."""

_KINDS = ",".join(DEFAULT_KINDS)


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run; plain values only, so that they can be read from any file without running code.

    The defaults of the optimiser and of the loss are those of the configuration that was published with Moran et al.,
    Digital Discovery 2025, 4, 790 (``compact_dim_klnorm.yaml``).
    Each field carries its description in its annotation, see :func:`descriptions`.

    Raises:
        ValueError: a value out of range, or options that contradict each other.
    """

    model: Annotated[str, "architecture of the encoder; its own options are --encoder.*"] = "sitenet"
    objective: Annotated[
        str,
        "deep_infomax, fingerprint, barlow_twins, distillation (without labels) or supervised (on the labels of "
        "--target); several joined by +, as in deep_infomax+fingerprint, add up",
    ] = "deep_infomax"
    objective_weights: Annotated[
        str | list[float] | None, "weights of the objectives, separated by commas, in their order; 1 each by default"
    ] = None
    data: Annotated[
        str,
        "crystals to train on: a Parquet file with OPTIMADE names, a folder of CIF files, a Matbench .json.gz, or "
        "prototypes, hypothetical crystals that come with the package",
    ] = "prototypes"
    target: Annotated[
        str | list[str] | None,
        "label column, or several separated by commas: learned by supervised, probed at the end of every run",
    ] = None
    init: Annotated[
        str | None,
        "encoder that the run starts from: a checkpoint, a .safetensors file, the name of one that comes with the "
        "package, or hf://user/name",
    ] = None
    resume: Annotated[str | None, "checkpoint of an interrupted run to continue; its options are taken over"] = None
    epochs: Annotated[int, "passes over the training part"] = 12
    batch_sites: Annotated[int, "unique sites in a batch"] = 1200
    lr: Annotated[float, "learning rate of AdamW"] = 1e-4
    schedule: Annotated[
        Schedule, "learning rate over the run: constant (as published), or cosine, which falls to zero at its end"
    ] = "constant"
    weight_decay: Annotated[float, "weight decay of AdamW"] = 1e-4
    seed: Annotated[int, "seed of parameters, split, batches, false samples and noise"] = 0
    val_fraction: Annotated[float, "share of the crystals kept for validation; 0 for none"] = 0.1
    split: Annotated[
        str,
        "what stays on one side of the split: formula, chemical_system, or nothing (random); matbench:K for the "
        "official fold K (0 to 4) as validation part; or a .json file of index sets with train and val",
    ] = "formula"
    limit: Annotated[int | None, "use this many crystals of the data, drawn at random with the seed"] = None
    max_sites: Annotated[int, "crystals with more sites in their primitive cell are left out, and counted"] = 50
    oxidation: Annotated[Literal["zero", "guess"], "oxidation state of sites: zero, or guessed from the formula"] = (
        "zero"
    )
    precision: Annotated[Precision, "32 or 64 bit numbers, or mixed precision with 16 or bf16"] = "32"
    accelerator: Annotated[Accelerator, "where to compute: gpu is CUDA; auto takes it where there is any"] = "auto"
    devices: Annotated[
        int, "number of devices (processes, on a CPU) of each machine; each device has batches of its own"
    ] = 1
    num_nodes: Annotated[int, "number of machines; torchrun or srun starts the command on each of them"] = 1
    compile: Annotated[
        bool, "costly steps by C++ kernels, or torch.compile, where a compiler is found; the numbers are the same"
    ] = True
    logdir: Annotated[str, "folder of the runs, for tensorboard --logdir"] = "runs"
    name: Annotated[
        str | None, "name of the run, its folder in --logdir; by default made from model, objective and data"
    ] = None
    readout: Annotated[
        Readout,
        "vectors that the checkpoint hands to probes and embeddings: global (the paper), full (with the pooled hidden "
        "layer and statistics of the local vectors), or decoded (the fingerprints that the global one tells)",
    ] = "global"
    kinds: Annotated[str | list[str], "deep_infomax: kinds of false samples, separated by commas"] = _KINDS
    alpha: Annotated[float, "deep_infomax: weight of the Jensen-Shannon loss"] = 1.0
    beta: Annotated[float, "deep_infomax: weight of the KL term"] = 0.1
    isolate: Annotated[bool, "deep_infomax: levels learn from their own loss alone"] = True
    donors: Annotated[
        DonorRule, "deep_infomax: donors of transplanted species: of equal site count where possible, or any"
    ] = "matched"
    fingerprints: Annotated[
        str | list[str], "fingerprint: what is predicted of each crystal, magpie, radial, or both separated by commas"
    ] = "magpie"
    barlow_channels: Annotated[int, "barlow_twins: length of the vectors that are compared"] = 256
    mask: Annotated[float, "barlow_twins: share of the sites of a crystal whose species are hidden; 0 for none"] = 0.1
    displacement: Annotated[
        float, "barlow_twins: standard deviation of the displacement of sites along each axis, in angstrom"
    ] = 0.05
    teacher: Annotated[
        str | None,
        "distillation: whose embedding of each crystal is predicted: an encoder, as of --init, a network of Crystal "
        "Twins (.pth or .npz), or a table of embeddings (.parquet or .csv)",
    ] = None
    teacher_atoms: Annotated[
        str | None, "distillation: atom vectors of a Crystal Twins teacher, atom_init.json or .npz"
    ] = None
    loss: Annotated[
        LabelLoss, "supervised: mean absolute or mean squared error, or robust_l1 with a deviation for each prediction"
    ] = "l1"
    head: Annotated[Head, "supervised: head with one hidden layer, or with two residual layers (as Roost)"] = "hidden"
    head_channels: Annotated[int, "supervised: width of the last hidden layer of the head"] = 64
    encoder: Annotated[dict[str, Any], "options of the architecture"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_sites", "max_sites", "devices", "num_nodes", "head_channels", "barlow_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(self, name)}")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"--limit must be at least 2 crystals; got {self.limit}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be positive and finite; got {self.lr}")
        for name in ("weight_decay", "alpha", "beta", "displacement"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be finite and not negative; got {getattr(self, name)}"
                )
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"--seed must not be negative and lie below {SEEDS}; got {self.seed}")
        if self.name is not None and not _is_folder_name(self.name):
            raise ValueError(f"--name must be the name of one folder, without a path; got {self.name!r}; see --logdir")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction must lie in [0, 1); got {self.val_fraction}")
        if not 0 <= self.mask < 1:
            raise ValueError(f"--mask must lie in [0, 1); got {self.mask}")
        if self.readout not in get_args(Readout):
            raise ValueError(f"--readout {self.readout}: unknown; known: {', '.join(get_args(Readout))}")
        if self.readout == "decoded" and "fingerprint" not in self.objectives:
            raise ValueError("--readout decoded needs --objective fingerprint, alone or among others")
        if fault := objective_fault(self.objective):
            raise ValueError(f"--objective {self.objective}: {fault}")
        _check_weights(self.objectives, self.weights)
        if unknown := [kind for kind in self.false_kinds if kind not in KINDS]:
            raise ValueError(f"--kinds {','.join(unknown)}: unknown; known: {', '.join(KINDS)}")
        kinds = self.fingerprint_kinds
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(FINGERPRINTS):
            raise ValueError(
                f"--fingerprints must be of {', '.join(FINGERPRINTS)}, each once; got {self.fingerprints!r}"
            )
        if "supervised" in self.objectives and not self.targets:
            raise ValueError("--objective supervised needs --target COLUMN: a label column of the data")
        _check_teacher(self.teacher, self.teacher_atoms, "distillation" in self.objectives)
        if self.init is not None and self.resume is not None:
            raise ValueError("--init starts a new run and --resume continues one: give one of them")

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives that add up, as a list."""
        return _names(self.objective)

    @property
    def weights(self) -> list[float]:
        """Weight of each objective, in their order."""
        if self.objective_weights is None:
            return [1.0] * len(self.objectives)
        try:
            return [float(weight) for weight in _as_list(self.objective_weights)]
        except ValueError as error:
            raise ValueError(
                f"--objective-weights must be numbers separated by commas; got {self.objective_weights!r}"
            ) from error

    @property
    def targets(self) -> list[str]:
        """Label columns, as a list."""
        return _as_list(self.target)

    @property
    def false_kinds(self) -> list[str]:
        """Kinds of false samples, as a list."""
        return _as_list(self.kinds)

    @property
    def fingerprint_kinds(self) -> list[str]:
        """Kinds of fingerprints, as a list."""
        return _as_list(self.fingerprints)

    @property
    def run_name(self) -> str:
        """Name of the run, or the stem of one: model, objective and data."""
        if self.name is not None:
            return self.name
        data = Path(self.data).name.split(".")[0] or "data"
        return f"{self.model}-{'-'.join(self.objectives)}-{data}".replace("_", "-").replace(" ", "-")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name: what a checkpoint holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainOptions:
        """Options from plain values by name; names that this version does not know are left out."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def objective_fault(value: str) -> str | None:
    """Say what is wrong with the names of objectives.

    Args:
        value: one name, or several joined by "+".

    Returns:
        A name that is none of :data:`OBJECTIVES`, or is there twice, in words; None where all is well.
    """
    names = _names(value)
    if unknown := [name for name in names if name not in OBJECTIVES]:
        return f"unknown: {', '.join(map(repr, unknown))}; known: {', '.join(OBJECTIVES)}, several are joined by +"
    if len(set(names)) < len(names):
        return "each objective is named once; --objective-weights gives it more weight"
    return None


def descriptions() -> dict[str, tuple[Any, str]]:
    """Type and description of every option, by name."""
    plain = get_type_hints(TrainOptions)
    annotated = get_type_hints(TrainOptions, include_extras=True)
    return {entry.name: (plain[entry.name], annotated[entry.name].__metadata__[0]) for entry in fields(TrainOptions)}


def _is_folder_name(name: str) -> bool:
    return bool(name.strip()) and name not in (".", "..") and name.isprintable() and not set(name) & set("/\\")


def _check_weights(objectives: list[str], weights: list[float]) -> None:
    if len(weights) != len(objectives):
        raise ValueError(
            f"--objective-weights needs one weight for each of {', '.join(objectives)}; got {len(weights)} of them"
        )
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"--objective-weights must be finite and not negative; got {weight}")


def _check_teacher(teacher: str | None, atoms: str | None, wanted: bool) -> None:
    if wanted and teacher is None:
        raise ValueError(
            "--objective distillation needs --teacher FILE: a checkpoint, a network of Crystal Twins or a table of "
            "embeddings"
        )
    if teacher is not None and not wanted:
        raise ValueError("--teacher needs --objective distillation, alone or among others")
    is_network = teacher is not None and Path(teacher).suffix in CRYSTAL_TWINS
    if is_network and atoms is None:
        raise ValueError(f"--teacher {teacher} needs --teacher-atoms FILE: the vectors of the elements, atom_init.json")
    if atoms is not None and not is_network:
        raise ValueError(f"--teacher-atoms belongs to a --teacher of Crystal Twins ({' or '.join(CRYSTAL_TWINS)})")


def _names(objective: str) -> list[str]:
    return [name.strip() for name in objective.split("+")]


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    parts = value.split(",") if isinstance(value, str) else value
    return [text for part in parts if (text := str(part).strip())]
