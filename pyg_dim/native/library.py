"""C++ kernels, compiled on the machine that runs them, at their first use."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)
_FLAGS: Final = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-Wno-psabi")
_SCALARS: Final = {torch.float32: "float", torch.float64: "double"}
_HERE: Final = Path(__file__).parent


class NoKernelError(RuntimeError):
    """The kernels cannot be built here; the message says why."""


@cache
def library(name: str, dtype: torch.dtype, **widths: int) -> ctypes.CDLL:
    """The functions of one source file, for one type of numbers and certain widths.

    The compiled file is kept in the user's cache folder, under a name made of the sources, the widths, and what the
    compiler says of itself and the processor: machines may share the folder. A checksum in the name tells a damaged
    file, which is built again.

    Args:
        name: source file in this folder, without ".cpp".
        dtype: float32 or float64.
        **widths: constants that the file asks for.

    Returns:
        The loaded library.

    Raises:
        NoKernelError: no C++ compiler, or one that cannot build it.
    """
    compiler = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if compiler is None:
        raise NoKernelError("no C++ compiler (c++, g++, clang++) is found on the path")
    defined = [f"-D{key}={value}" for key, value in sorted({"SCALAR": _SCALARS[dtype], **widths}.items())]
    try:
        sources = [(_HERE / file).read_bytes() for file in ("vectors.h", "rows.h", f"{name}.cpp")]
        made_of = [*sources, _target(compiler), " ".join([*_FLAGS, *defined]).encode()]
        stem = f"{name}-{_checksum(*made_of)}"
        folder = _folder()
        path = _kept(folder, stem) or _build(compiler, [*defined, str(_HERE / f"{name}.cpp")], folder, stem)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelError(f"{name}.cpp cannot be built or loaded: {error}") from error


def call(function: Any, *arguments: Any) -> int:
    """Call a function of a library.

    Args:
        function: the function.
        *arguments: contiguous tensors, which live until it returns, or None for null; integers, for int64; what
            :mod:`ctypes` takes.

    Returns:
        What it returns.
    """
    return int(function(*(_argument(value) for value in arguments)))


def threads() -> ctypes.c_int:
    """Number of threads of a kernel: that of PyTorch's own."""
    return ctypes.c_int(torch.get_num_threads())


def pointer(values: Tensor | None) -> ctypes.c_void_p:
    """Address of the numbers of a contiguous tensor, which must outlive its use; or null."""
    if values is None:
        return ctypes.c_void_p()
    if not values.is_contiguous():
        raise ValueError("kernels do not know strides: give them contiguous tensors")
    return ctypes.c_void_p(values.data_ptr())


def _argument(value: Any) -> Any:
    if value is None or isinstance(value, Tensor):
        return pointer(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def _checksum(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:20]


@cache
def _target(compiler: str) -> bytes:
    """Version of the compiler and its library, and the instructions that it may use: all as predefined macros."""
    command = [compiler, *_FLAGS, "-x", "c++", "-dM", "-E", "-"]
    done = subprocess.run(command, input=b"#include <cstdint>\n", capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise NoKernelError(f"{compiler} does not work: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pyg_dim-")


def _folder() -> Path:
    """The user's cache folder or, where it cannot be written to, one that goes when this process ends."""
    try:
        folder = Path.home() / ".cache" / "pyg_dim"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # a user may have no home
        return Path(_temporary().name)
    return folder


def _kept(folder: Path, stem: str) -> Path | None:
    for path in folder.glob(f"{stem}-*.so"):
        # Loading a damaged file may end the process.
        if path.stem == f"{stem}-{_checksum(path.read_bytes())}":
            return path
    return None


@cache
def _tell() -> None:
    _logger.info("building kernels in C++, a second for each, once for this machine")


def _build(compiler: str, arguments: list[str], folder: Path, stem: str) -> Path:
    _tell()
    handle, written = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, "-shared", *arguments, "-o", written]
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
        if done.returncode:
            raise NoKernelError(f"{compiler} cannot build: {done.stderr.decode(errors='replace').strip()[-500:]}")
        path = folder / f"{stem}-{_checksum(Path(written).read_bytes())}.so"
        os.replace(written, path)
    finally:
        Path(written).unlink(missing_ok=True)
    return path
