"""How the C library hands memory out to tensors."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
"""Names of settings in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process use freed blocks again, however large, in place of giving them back to the system.

    glibc maps each block of some megabytes anew, and the system fills its pages with zeros one fault at a time: in
    steps of wide tensors that takes as long as the arithmetic. The process keeps the memory of its largest step until
    it ends, in a heap whose holes later blocks fill.

    Returns:
        Whether the C library knows these settings; it is left as it is where not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, and on Windows None names no library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
