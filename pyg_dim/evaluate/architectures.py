"""What encoders there are, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
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
    # The name is what one searches for, and numbers say nothing in two lines; what is said in words may be broken.
    grid.add_column("model", no_wrap=True)
    for heading in ("parameters", "of levels", "length"):
        grid.add_column(heading, justify="right", no_wrap=True)
    # One below the other in one column: two of them would leave neither the width that it needs.
    grid.add_column("graph, source", overflow="fold")
    for encoder in encoders:
        numbers = (*count_parameters(encoder), encoder.channels)
        grid.add_row(encoder.name, *map(str, numbers), escape(f"{encoder.graph!r}\n{encoder.source}"))
    console.print(grid)
    console.print(
        "parameters: of the encoder at its defaults, without its Deep InfoMax levels; length: of the global "
        "representation",
        highlight=False,
    )
