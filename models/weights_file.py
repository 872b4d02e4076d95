"""Files of weights that other programs wrote, read without running what is in them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyg_dim.data.sources.streams import require_proportion


def must_exist(path: Path) -> None:
    """Complain about a file that is not there.

    Raises:
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file by name.

    Args:
        path: the file.

    Returns:
        All of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, one that holds Python objects, or one that expands without reason.
    """
    must_exist(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a readable .npz file of plain arrays")
    require_proportion(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # foreign bytes give errors of any type
        raise ValueError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def read_torch(path: Path, safe: Sequence[Any] = ()) -> Any:
    """Content of a PyTorch file of tensors and plain values.

    Args:
        path: the file.
        safe: what else may be in it, as ``torch.serialization.safe_globals`` takes it.

    Returns:
        The content, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, one that holds other objects, or one that expands without reason.
    """
    must_exist(path)
    require_proportion(path)
    try:
        with torch.serialization.safe_globals(list(safe)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes give errors of any type
        raise ValueError(
            f"{path} is not a readable PyTorch file of tensors and plain values: {str(error).splitlines()[0]}"
        ) from error


def number(value: Any, name: str, path: Path, model: str) -> float:
    """What should be a number, as one.

    Args:
        value: number, tensor or array of one number; None where the file has none.
        name: its name in the file.
        path: the file.
        model: name of the architecture.

    Returns:
        The number.

    Raises:
        ValueError: it is none, or not finite.
    """
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of {model}: it has no number {name!r}") from error
    if not math.isfinite(found):
        raise ValueError(f"{path}: {name!r} is {found}, not a finite number")
    return found


def fill(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    path: Path,
    model: str,
    *,
    hint: Callable[[str], str] = lambda name: "",
) -> None:
    """Copy weights; each must be there, in the right shape, and no other.

    Args:
        own: tensors to fill, by their names in the file.
        given: those of the file.
        path: the file.
        model: name of the architecture.
        hint: what to add to the complaint about the shape of one.

    Raises:
        ValueError: weights that are missing, unknown, of another shape or not finite; the message names them.
    """
    if missing := [name for name in own if name not in given]:
        raise ValueError(f"{path} is no checkpoint of {model}, or not all of one: it has no {', '.join(missing)}")
    if foreign := [name for name in given if name not in own]:
        raise ValueError(f"{path} has weights that {model} does not have: {', '.join(foreign)}")
    for name, target in own.items():
        if given[name].shape != target.shape:
            raise ValueError(
                f"{path}: {name!r} has shape {tuple(given[name].shape)} where {tuple(target.shape)} is needed"
                + hint(name)
            )
        if given[name].is_complex() or not given[name].isfinite().all():
            raise ValueError(f"{path}: {name!r} holds values that are no finite numbers")
        target.copy_(given[name])
