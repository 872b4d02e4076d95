"""Kernels in C++ for what costs most on a CPU; the plain path in PyTorch beside each gives the same numbers."""

from __future__ import annotations

import logging
from functools import cache
from typing import Final

import torch
from torch import Tensor

from pyg_dim.native.library import NoKernelError, library

_logger = logging.getLogger(__name__)
LANES: Final = 16
"""Widths of what the kernels work on are multiples of this."""


def usable(*values: Tensor) -> bool:
    """Whether the kernels can work on these numbers: on a CPU, of one type, of widths that fill vectors.

    Not within code that torch.compile traces, nor under autocast: PyTorch's own kernels serve there.

    Args:
        *values: [..., C] floating-point tensors.

    Returns:
        Whether the kernels can be called.
    """
    dtype = values[0].dtype
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == dtype and not tensor.size(-1) % LANES for tensor in values)
        and dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and fault() is None
    )


def serves(name: str, dtype: torch.dtype, **widths: int) -> bool:
    """Whether there is a library of kernels for these numbers, built now where it was not before.

    Args:
        name: source file, see :func:`pyg_dim.native.library.library`.
        dtype: type of the numbers.
        **widths: constants that the file asks for; all but HEADS are widths of vectors.

    Returns:
        Whether there is.
    """
    fill_vectors = all(width % LANES == 0 for key, width in widths.items() if key != "HEADS")
    return dtype in (torch.float32, torch.float64) and fill_vectors and fault(name, dtype, **widths) is None


@cache
def fault(name: str = "layout", dtype: torch.dtype = torch.float32, **widths: int) -> str | None:
    """Why a library of kernels cannot be built on this machine, or None where it can; it is tried once.

    Args:
        name: source file, see :func:`pyg_dim.native.library.library`.
        dtype: float32 or float64.
        **widths: constants that the file asks for.

    Returns:
        The reason.
    """
    try:
        library(name, dtype, **widths)
    except NoKernelError as error:
        # Where none can be built, it is said once.
        if name == "layout" or fault() is None:
            _logger.warning("C++ kernels cannot be built: PyTorch's own are used (same numbers, slower): %s", error)
        return str(error)
    return None
