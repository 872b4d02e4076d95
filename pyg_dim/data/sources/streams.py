"""Files that may be compressed, read without trusting what they declare."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

MAX_RATIO: Final = 200
"""How much larger than the file its contents may be; text of crystals shrinks to a fifth or a tenth."""

FREE: Final = 64 * 2**20
"""Bytes that are read whatever the ratio."""

_BLOCK: Final = 2**18
_OPENERS: Final[dict[bytes, Callable[[Path], IO[bytes]]]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""How compressed files start."""

DAMAGE: Final = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged or truncated compressed file raises."""


def limit(path: Path) -> int:
    """How many bytes a compressed file may expand to.

    Args:
        path: file.

    Returns:
        Bytes.
    """
    return FREE + MAX_RATIO * path.stat().st_size


def require_proportion(path: Path) -> None:
    """Refuse an archive of arrays or tensors whose members are declared to be much larger than the file.

    Args:
        path: zip archive, as NumPy (``.npz``) and PyTorch write them. A damaged one, or another kind of file, is left
            to who reads it.

    Raises:
        ValueError: the archive is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, *DAMAGE):
        return
    if total > limit(path):
        raise ValueError(f"{path} expands to more than {MAX_RATIO} times its size: not read")


class _Limited(io.RawIOBase):
    """A stream that ends with an error where it becomes longer than it may be."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = limit(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._path} expands to more than {MAX_RATIO} times its size: not read")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_binary(path: Path) -> io.BufferedReader:
    """Open a file that may be compressed by gzip, bzip2 or xz, whatever its name says.

    Args:
        path: file.

    Returns:
        The contents; reading raises one of DAMAGE where the file is damaged, and ValueError where it expands without
        reason.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    for start, opener in _OPENERS.items():
        if magic.startswith(start):
            return io.BufferedReader(_Limited(opener(path), path), _BLOCK)
    return path.open("rb")
