"""Where a run computes, and whether torch.compile works there."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

Accelerator = Literal["auto", "cpu", "gpu"]


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
