"""C++ kernels, compiled on the machine that runs them, at their first use."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

_FLAGS: Final = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi")
_SCALARS: Final = {torch.float32: "float", torch.float64: "double"}
_HERE: Final = Path(__file__).parent


class NoKernelError(RuntimeError):
    """The kernels cannot be built here; the message says why."""


@cache
def library(name: str, dtype: torch.dtype, **widths: int) -> ctypes.CDLL:
    """The functions of one source file, for one type of numbers and certain widths.

    The compiled file is kept in the user's cache folder, under a name made of the sources, the compiler, the processor
    and the widths.

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
    sources = b"".join((_HERE / file).read_bytes() for file in ("vectors.h", "rows.h", f"{name}.cpp"))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout  # noqa: S603
    digest = hashlib.sha256(b"\0".join([sources, version, _processor(), " ".join(defined).encode()])).hexdigest()
    folder = _folder()
    path = folder / f"{name}-{digest[:20]}.so"
    if not path.exists():
        handle, written = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        command = [compiler, *_FLAGS, *defined, str(_HERE / f"{name}.cpp"), "-o", written]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            os.unlink(written)
            raise NoKernelError(f"{compiler} cannot build {name}.cpp: {done.stderr.strip()[-500:]}")
        os.replace(written, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelError(f"{path} cannot be loaded: {error}") from error


def pointer(values: Tensor | None) -> ctypes.c_void_p:
    """Address of the numbers of a contiguous tensor, or null."""
    if values is None:
        return ctypes.c_void_p()
    assert values.is_contiguous()  # noqa: S101 - the kernels do not know strides
    return ctypes.c_void_p(values.data_ptr())


def _folder() -> Path:
    folder = Path.home() / ".cache" / "pyg_dim"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="pyg_dim-"))


def _processor() -> bytes:
    """What the instructions that a compiler may use depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()} {flags}".encode()
