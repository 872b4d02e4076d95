"""What encoders there are, and how large they are."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from pyg_dim.level import Level
from pyg_dim.models import Encoder


def count_parameters(encoder: nn.Module) -> tuple[int, int]:
    """Count the parameters of an encoder and of its Deep InfoMax levels.

    The levels (critics and noise) are needed for training alone; a representation does not depend on them.

    Args:
        encoder: The encoder, with its levels.

    Returns:
        Numbers of parameters: without those of the levels, and of the levels.
    """
    levels = {id(p) for module in encoder.modules() if isinstance(module, Level) for p in module.parameters()}
    sizes = {id(p): p.numel() for p in encoder.parameters()}
    of_levels = sum(size for key, size in sizes.items() if key in levels)
    return sum(sizes.values()) - of_levels, of_levels


def print_models(models: Mapping[str, type[Encoder]], console: Console) -> None:
    """Print the encoders at their defaults.

    Args:
        models: Classes of encoders by name.
        console: Where to print.
    """
    encoders = [models[name]() for name in sorted(models)]
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # The name is what one searches for, and numbers say nothing in two lines.
    grid.add_column("model", no_wrap=True)
    for heading in ("parameters", "of levels", "length"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for encoder in encoders:
        numbers = (*count_parameters(encoder), encoder.channels)
        grid.add_row(encoder.name, *map(str, numbers))
    console.print(grid)
    # Below the table, where they have the whole width of the screen.
    for encoder in encoders:
        lines = [line for text in (repr(encoder.graph), encoder.source) for line in _broken(text, console.width - 2)]
        console.print(encoder.name, *(f"  {line}" for line in lines), "", sep="\n", markup=False, highlight=False)
    console.print(
        "parameters: of the encoder at its defaults, without its Deep InfoMax levels; length: of the global "
        "representation",
        highlight=False,
    )


def _broken(text: str, width: int) -> list[str]:
    """Lines of a width, broken behind spaces and opening brackets."""
    lines = [""]
    for piece in re.split(r"(?<=[ (])", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]
