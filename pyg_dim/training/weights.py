"""Weights files: one encoder as safetensors, with what there is to say about it in the header.

Such a file holds numbers and JSON, and no code. The header has a text ``"pyg_dim"``: the section of the same name of
the checkpoint that the encoder comes from (architecture, options, data), and ``"card"``, texts such as its licence.
Tensors are called ``encoder.<parameter>`` and, of the layer that tells fingerprints, ``decoder.<parameter>``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import Tensor

WEIGHTS: Final = ".safetensors"
"""Ending of the files."""
MAX_HEADER: Final = 2**20
"""Bytes of the longest header that is read."""
MAX_FILE: Final = 2**30
"""Bytes of the largest file that is read."""

_KEY: Final = "pyg_dim"
_METADATA: Final = "__metadata__"


def pack_weights(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Put an encoder into the bytes of a weights file; the same one gives the same bytes.

    Args:
        about: plain values.
        tensors: parameters and buffers.

    Returns:
        The bytes.

    Raises:
        ValueError: a value that JSON does not know.
    """
    try:
        text = json.dumps(about, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"what is said about the encoder holds more than plain values: {error}") from error
    return safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, {_KEY: text})


def unpack_weights(data: bytes, source: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """Take a weights file apart.

    Args:
        data: its bytes.
        source: where they come from, for messages.

    Returns:
        What it says about the encoder, plain values that have not been looked at; and its tensors, on the CPU.

    Raises:
        ValueError: a foreign, truncated or damaged file, or a header beyond :data:`MAX_HEADER`.
    """
    header = _header(data, source)
    metadata = header.get(_METADATA)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        raise ValueError(f"{source} is a safetensors file of another program: its header has no {_KEY!r}")
    about = _read_json(metadata[_KEY], f"{source} is damaged: {_KEY!r} of its header")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # foreign bytes give errors of several types
        raise ValueError(f"{source} is damaged or truncated: {error}") from error
    return about, tensors


def read_weights(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read a weights file, see :func:`unpack_weights`.

    Args:
        path: the file.

    Returns:
        What it says about the encoder, and its tensors.

    Raises:
        ValueError: the file cannot be read, is larger than :data:`MAX_FILE`, or none of an encoder.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise ValueError(f"{path} has {size} bytes; weights files of up to {MAX_FILE} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the weights {path}: {error.strerror or error}") from error
    return unpack_weights(data, path)


def _header(data: bytes, source: str | Path) -> dict[str, Any]:
    """The JSON in front: eight bytes tell its length."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"{source} is not a safetensors file, or a truncated one")
    header = _read_json(data[8 : 8 + length], f"{source} is not a safetensors file: its header")
    if not isinstance(header, dict):
        raise ValueError(f"{source} is not a safetensors file: its header is no JSON object")
    return header


def _read_json(text: str | bytes, what: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
