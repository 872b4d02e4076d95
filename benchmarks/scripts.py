"""Benchmarks that are programs with a command line of their own: what they print is kept as it stands."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from results import Measured


def printed_by(program: str, arguments: Sequence[str], markdown: bool) -> Measured:
    """Run a program of this folder.

    Args:
        program: its module, which has ``main(argv)``.
        arguments: of its command line.
        markdown: whether it prints Markdown, or plain text.

    Returns:
        What it printed, with names of files instead of their paths.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        import_module(program).main(arguments)
    text = said.getvalue().strip()
    for path in (word for word in arguments if Path(word).exists()):
        text = text.replace(path, Path(path).name)
    return Measured(printed=text if markdown else f"```text\n{text}\n```")


def data_layer(data: str = "prototypes", arguments: Sequence[str] = ()) -> Measured:
    """Opening data, batches, neighbour lists against other programs, modes of the loader."""
    return printed_by("data_layer", [data, *arguments], markdown=False)


def import_cif(data: str = "prototypes", arguments: Sequence[str] = ()) -> Measured:
    """Reading CIFs: the fast path against pymatgen's parser."""
    return printed_by("import_cif", [data, *arguments], markdown=False)


def dimpool(arguments: Sequence[str] = ()) -> Measured:
    """What Deep InfoMax costs a PyG model."""
    return printed_by("dimpool", arguments, markdown=True)


def joint(arguments: Sequence[str] = ()) -> Measured:
    """Accuracy with few labels: supervised training alone, and with the loss of the tape (minutes)."""
    return printed_by("joint", arguments, markdown=True)


def own_model(arguments: Sequence[str] = ()) -> Measured:
    """Probes of a GIN that learned without labels, beside other graph objectives (many minutes)."""
    return printed_by("own_model", arguments, markdown=True)
