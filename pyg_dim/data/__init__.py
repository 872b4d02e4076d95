"""Crystals on disk and in batches.

The names below are imported when they are first used: the core needs :mod:`pyg_dim.data.keys`, but neither pyarrow nor
any other library that only reading crystals needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyg_dim.data.batch import CrystalBatch
    from pyg_dim.data.dataset import CrystalDataset
    from pyg_dim.data.graphs import DenseSupercell, NearestNeighbors
    from pyg_dim.data.load import load_dataset
    from pyg_dim.data.loader import CrystalLoader
    from pyg_dim.data.splits import split

__all__ = [
    "CrystalBatch",
    "CrystalDataset",
    "CrystalLoader",
    "DenseSupercell",
    "NearestNeighbors",
    "load_dataset",
    "split",
]

_MODULES = {
    "CrystalBatch": "batch",
    "CrystalDataset": "dataset",
    "CrystalLoader": "loader",
    "DenseSupercell": "graphs",
    "NearestNeighbors": "graphs",
    "load_dataset": "load",
    "split": "splits",
}


# Hidden from type checkers, which would take any misspelt name for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
