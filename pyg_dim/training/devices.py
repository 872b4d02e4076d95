"""Where a run computes, and whether torch.compile works there."""

from __future__ import annotations

import logging
import warnings
from typing import Final, Literal

import torch
from torch import Tensor

from pyg_dim.data.dataset import CrystalDataset

Accelerator = Literal["auto", "cpu", "gpu"]

RESIDENT_SHARE: Final = 0.5
"""Share of the free memory of a GPU that crystals may take; steps and graphs need the rest."""

_logger = logging.getLogger(__name__)


def choose_device(accelerator: Accelerator) -> Literal["cpu", "cuda"]:
    """Name the kind of device that a run computes on.

    Apple's GPUs are never chosen: they have no 64 bit numbers, which the masks of false samples are computed with.

    Args:
        accelerator: "cpu"; "gpu" for CUDA; "auto" for CUDA where there is any, and the CPU elsewhere.

    Returns:
        "cpu" or "cuda".

    Raises:
        ValueError: "gpu" where PyTorch finds no CUDA device.
    """
    if accelerator == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if accelerator == "gpu":
        raise ValueError(
            "--accelerator gpu needs a CUDA device and a PyTorch built for it, and none is found here: "
            "use --accelerator cpu or auto"
        )
    return "cpu"


def made_resident(dataset: CrystalDataset, device: torch.device) -> CrystalDataset:
    """Bring a data set to a GPU, so that its batches are made there; a message says where it has to stay behind.

    Args:
        dataset: crystals.
        device: where a process computes.

    Returns:
        The data set on the device; as it is on a CPU, or where it takes more than half of the free memory. Batches are
        then made on the host and copied.
    """
    if device.type != "cuda" or dataset.pos.device == device:
        return dataset
    free, _ = torch.cuda.mem_get_info(device)
    if dataset.num_bytes > RESIDENT_SHARE * free:
        _logger.info(
            "%d crystals take %.1f GB and %s has %.1f GB free: batches are made on the host and copied",
            len(dataset), dataset.num_bytes / 1e9, device, free / 1e9,
        )  # fmt: skip
        return dataset
    return dataset.to(device)


def compile_fault(device: torch.device | str) -> str | None:
    """Try torch.compile on a small function, forward and backward.

    Args:
        device: where.

    Returns:
        None where it works; else the reason in one line: no compiler, one that does not work, no kernels for the
        device, and whatever else may be missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = torch.linspace(0.0, 1.0, 24, device=device).view(8, 3).requires_grad_()
            torch.compile(_small, dynamic=True)(x).sum().backward()
    except Exception as error:  # each part of a compiler has errors of its own, and none is a reason to stop
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[0].strip() if lines else type(error).__name__
    return None


def _small(x: Tensor) -> Tensor:
    return (x.exp() * x).sum(0)
