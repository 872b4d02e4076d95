"""Checkpoints of runs: what they hold, and how an encoder is had back from one.

A checkpoint is one file that ``torch.load(path, weights_only=True)`` reads. Beside the state of the run (parameters,
optimiser, epoch) it holds a section ``"pyg_dim"`` of plain values: the architecture and its options, the options of
the run and a summary of its data. The mean and the spread of labels are buffers of the objective, under
``state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import torch
from torch import Tensor

from pyg_dim import models
from pyg_dim.data.dataset import Oxidation
from pyg_dim.data.sources.streams import require_proportion
from pyg_dim.data.supercell import MAX_SITES
from pyg_dim.training.pretrained import locate
from pyg_dim.training.weights import WEIGHTS, read_weights, unpack_weights

if TYPE_CHECKING:
    from pyg_dim.models.encoder import Encoder

SECTION: Final = "pyg_dim"
METRICS: Final = "metrics"
"""Where a checkpoint of a run has the last value of everything that was logged, by tag."""
LAST: Final = "last.ckpt"
"""File of the state after the last epoch, in the folder of a run."""
FORMAT: Final = 1
ENCODER_PREFIX: Final = "objective.encoder."
"""Where the parameters of the encoder lie in ``state_dict``."""
_DECODER_PREFIXES: Final = ("decoder.", "objective.projector.", "objective.parts.fingerprint.projector.")
"""Where those of the layer that tells fingerprints may lie: of weights files, and of runs."""
_CONTENTS: Final[dict[str, type]] = {
    "model": str, "encoder": dict, "options": dict, "options.encoder": dict, "data": dict, "data.source": str,
    "data.crystals": int, "data.val": int, "data.fingerprint": int,
}  # fmt: skip
"""Entries of the section that are relied on, with their types; a dot leads into a dictionary."""


def section(encoder: Encoder, options: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of a run says about itself.

    Args:
        encoder: the encoder that is trained.
        options: options of the run, plain values.
        data: summary of the data set, plain values.

    Returns:
        Plain values: "format", "model" (name of the architecture), "encoder" (its options), "options" and "data".
    """
    return {
        "format": FORMAT,
        "model": encoder.name,
        "encoder": dict(encoder.config),
        "options": dict(options),
        "data": dict(data),
    }


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the checkpoint of a run into memory, or an encoder alone in its form, without running any code of the file.

    Args:
        path: the file, or what else :func:`pyg_dim.training.pretrained.locate` takes: the name of an encoder that comes
            with the package, a weights file (``.safetensors``), ``hf://user/repository``.

    Returns:
        Its contents, with the section ``"pyg_dim"``; of an encoder alone, beside it the parameters.

    Raises:
        FileNotFoundError: no such file, or no encoder of such a name.
        ValueError: the file cannot be read, is no checkpoint (foreign or truncated), is one of another program or a
            later version, or lacks something; the message names the file and what is missing.
    """
    path = locate(path)
    if path.is_dir():
        inside = ", ".join(sorted(str(file) for file in path.glob("*.ckpt")))
        raise FileNotFoundError(f"{path} is a folder; give a checkpoint file" + (f": {inside}" if inside else ""))
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == WEIGHTS:
        return _from_weights(*read_weights(path), path)
    require_proportion(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # torch.load meets foreign bytes with errors of any type
        raise ValueError(f"{path} is not a readable checkpoint: truncated, or another kind of file") from error
    _require_contents(checkpoint, path)
    return checkpoint


def parse_weights(data: bytes, source: str | Path) -> dict[str, Any]:
    """What :func:`read_checkpoint` makes of a weights file, from its bytes.

    Args:
        data: bytes of the file.
        source: where they come from, for messages.

    Returns:
        Its contents, in the form of a checkpoint.

    Raises:
        ValueError: foreign, truncated or damaged bytes.
    """
    return _from_weights(*unpack_weights(data, source), source)


def _from_weights(about: Any, tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Any]:
    state = {
        ENCODER_PREFIX + name.removeprefix("encoder.") if name.startswith("encoder.") else name: value
        for name, value in tensors.items()
    }
    checkpoint = {SECTION: about, "state_dict": state}
    _require_contents(checkpoint, source)
    return checkpoint


def _require_contents(checkpoint: Any, path: str | Path) -> None:
    """Look once at everything that is relied on later."""
    if not isinstance(checkpoint, dict) or SECTION not in checkpoint:
        raise ValueError(f"{path} is a PyTorch file but no checkpoint of a pyg_dim run: it has no {SECTION!r} section")
    about = checkpoint[SECTION]
    if not isinstance(about, dict):
        raise ValueError(f"{path} is damaged: its {SECTION!r} section is a {type(about).__name__}, not a dict")
    form = about.get("format")
    if not isinstance(form, int):
        raise ValueError(f"{path} is damaged: its {SECTION!r} section tells no format")
    if form > FORMAT:
        raise ValueError(f"{path} has checkpoint format {form}, this version reads up to {FORMAT}; upgrade pyg-dim")
    for name, kind in _CONTENTS.items():
        value: Any = about
        for key in name.split("."):
            if key not in value:
                raise ValueError(f"{path} is damaged: its {SECTION!r} section has no {name!r}")
            value = value[key]
        if not isinstance(value, kind):
            raise ValueError(
                f"{path} is damaged: {name!r} of its {SECTION!r} section is a {type(value).__name__}, not a "
                f"{kind.__name__}"
            )
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict) or not any(
        isinstance(value, Tensor) and value.is_floating_point()
        for name, value in state.items()
        if str(name).startswith(ENCODER_PREFIX)
    ):
        raise ValueError(f"{path} is damaged: it has no parameters of an encoder under 'state_dict'")
    for name, value in state.items():
        if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided or value.is_quantized):
            raise ValueError(f"{path} is damaged: {name!r} is no plain tensor")
        # By its strides a tensor may claim to be larger than the file that it comes from.
        if isinstance(value, Tensor) and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path} is damaged: {name!r} has more numbers than the file holds")


def load_encoder(path: str | Path) -> Encoder:
    """Rebuild an encoder; ``pyg_dim.load`` is the same function.

    Args:
        path: ``last.ckpt`` or ``best.ckpt`` of a run, of any objective; a weights file (``.safetensors``); the name of
            an encoder that comes with the package; or ``hf://user/repository`` (with ``[hub]``).

    Returns:
        The encoder with its trained parameters, on the CPU, in evaluation mode, with the C++ kernels on where they
        serve (``encoder.set_kernels(False)`` does without) and the readout of the run as ``default_readout``
        ("global" where the run knew no other).

    Raises:
        FileNotFoundError: no such file, or no encoder of such a name; the message lists those there are.
        ValueError: not a checkpoint or weights of an encoder, or one of an architecture that is not known here.
    """
    return encoder_of(read_checkpoint(path), path)


def encoder_of(checkpoint: Mapping[str, Any], path: str | Path) -> Encoder:
    """Rebuild the encoder of a checkpoint, see :func:`load_encoder`.

    Args:
        checkpoint: contents of the file, from :func:`read_checkpoint`.
        path: the file, for messages.

    Returns:
        The encoder.

    Raises:
        ValueError: an architecture, or options of it, that are not known here, or parameters that are not finite.
    """
    about = checkpoint[SECTION]
    state = encoder_state(checkpoint)
    require_plain_encoder(checkpoint, path)
    try:
        encoder = models.build(about["model"], **about["encoder"])
    except (TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        # What constructors make of values that no version has written.
        raise ValueError(f"{path} is damaged: its options make no {about['model']} encoder: {error}") from error
    encoder.to(next(value.dtype for value in state.values() if value.is_floating_point()))
    load_encoder_state(encoder, checkpoint, path)
    # Not the buffers: vectors of elements may have gaps.
    if broken := [name for name, value in encoder.named_parameters() if not value.isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]!r} holds values that are no finite numbers")
    encoder.decoder = decoder_of(checkpoint)
    if encoder.decoder is not None and encoder.decoder.in_features != encoder.channels:
        raise ValueError(f"{path} is damaged: its layer of fingerprints is of another representation")
    encoder.set_kernels(True)
    encoder.default_readout = about["options"].get("readout", "global")
    encoder.require_readout(encoder.default_readout)
    return encoder.eval()


def require_plain_encoder(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse options of an encoder that ask for more memory than its parameters can fill, or that name files.

    Args:
        checkpoint: contents of the file, from :func:`read_checkpoint`.
        path: the file, for messages.

    Raises:
        ValueError: there is such an option.
    """
    numbers = sum(value.numel() for value in encoder_state(checkpoint).values())
    _require_plain(checkpoint[SECTION]["encoder"], numbers, path)


def _require_plain(value: Any, limit: int, path: str | Path) -> None:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _require_plain(part, limit, path)
    elif isinstance(value, int) and abs(value) > limit:
        raise ValueError(f"{path} is damaged: an option of its encoder is {value}, and it has {limit} numbers in all")
    elif isinstance(value, str) and not value.isidentifier():
        raise ValueError(f"{path} is damaged: an option of its encoder is {value!r}, which is no name of a choice")


def decoder_of(checkpoint: Mapping[str, Any]) -> torch.nn.Linear | None:
    """The layer of a checkpoint that tells fingerprints.

    Args:
        checkpoint: contents of the file, from :func:`read_checkpoint`.

    Returns:
        The layer; None where the run had no such objective, alone or among others.

    Raises:
        ValueError: its weights do not fit together.
    """
    state = checkpoint["state_dict"]
    for prefix in _DECODER_PREFIXES:
        weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
        if weight is not None and "fingerprint" in checkpoint[SECTION]["options"].get("objective", ""):
            if weight.dim() != 2 or bias is None or bias.shape != weight.shape[:1]:
                raise ValueError("the checkpoint is damaged: its layer of fingerprints has no weights that fit")
            layer = torch.nn.Linear(weight.size(1), weight.size(0), dtype=weight.dtype)
            layer.load_state_dict({"weight": weight, "bias": bias})
            return layer
    return None


def crystal_options(checkpoint: Mapping[str, Any], path: str | Path) -> tuple[int, Oxidation]:
    """How the encoder of a checkpoint is to see crystals: as in its training.

    Args:
        checkpoint: contents of the file, from :func:`read_checkpoint`.
        path: the file, for messages.

    Returns:
        Sites of the largest crystals, and how oxidation states are had.

    Raises:
        ValueError: a file that says something else there.
    """
    options = checkpoint[SECTION]["options"]
    max_sites, oxidation = options.get("max_sites", MAX_SITES), options.get("oxidation", "zero")
    if not isinstance(max_sites, int) or max_sites < 1 or oxidation not in get_args(Oxidation):
        raise ValueError(f"{path} is damaged: max_sites is {max_sites!r} and oxidation {oxidation!r} in its options")
    return max_sites, oxidation


def encoder_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters and buffers of the encoder in a checkpoint, by their names in the encoder."""
    return {
        name.removeprefix(ENCODER_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        # An encoder had back from a checkpoint may have a decoder, which is none of its own parts.
        if name.startswith(ENCODER_PREFIX) and not name.startswith(f"{ENCODER_PREFIX}decoder.")
    }


def load_encoder_state(encoder: Encoder, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Give an encoder the parameters that a checkpoint holds.

    Args:
        encoder: an encoder of the same architecture with the same options.
        checkpoint: contents of the file, from :func:`read_checkpoint`.
        path: the file, for messages.

    Raises:
        ValueError: the checkpoint is of another architecture, or of other options; the message names both.
    """
    about = checkpoint[SECTION]
    require_model(encoder.name, checkpoint, path)
    try:
        encoder.load_state_dict(encoder_state(checkpoint))
    except RuntimeError as error:
        mine, theirs = dict(encoder.config), dict(about["encoder"])
        different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        detail = "; ".join(f"{name} is {theirs.get(name)} there and {mine.get(name)} here" for name in different)
        raise ValueError(
            f"{path} holds a {about['model']} encoder of another shape: "
            f"{detail or 'its parameters have other names, so it comes from another version'}"
        ) from error


def changed_options(encoder: Encoder, checkpoint: Mapping[str, Any]) -> list[str]:
    """Say in which options an encoder differs from that of a checkpoint.

    Args:
        encoder: an encoder of the same architecture.
        checkpoint: contents of a file, from :func:`read_checkpoint`.

    Returns:
        One text for each option, in their order; those that the version of the checkpoint did not have are not among
        them.
    """
    mine, theirs = dict(encoder.config), dict(checkpoint[SECTION]["encoder"])
    return [
        f"{name}: {theirs[name]} in the checkpoint, {value} now"
        for name, value in mine.items()
        if name in theirs and theirs[name] != value
    ]


def require_model(name: str, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check that a checkpoint is of the wanted architecture.

    Args:
        name: the wanted architecture.
        checkpoint: contents of the file, from :func:`read_checkpoint`.
        path: the file, for messages.

    Raises:
        ValueError: it is of another one; the message names both.
    """
    theirs = checkpoint[SECTION]["model"]
    if theirs != name:
        raise ValueError(f"{path} holds a {theirs} encoder, but this run is to train {name}: use --model {theirs}")
