"""Crystals on disk and in batches.

The names below are imported when they are first used: the core needs :mod:`pyg_dim.data.keys`, but neither pyarrow nor
any other library that only reading crystals needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyg_dim.data.batch import Crystal, CrystalBatch
    from pyg_dim.data.composition_graph import CompositionGraph
    from pyg_dim.data.compositions import CompositionDataset
    from pyg_dim.data.dataset import CrystalDataset
    from pyg_dim.data.graph_cache import GraphCache
    from pyg_dim.data.graphs import DenseSupercell, NearestNeighbors, RadiusGraph
    from pyg_dim.data.index_sets import load_index_sets, save_index_sets
    from pyg_dim.data.line_graph import LineGraph
    from pyg_dim.data.load import load_dataset
    from pyg_dim.data.loader import CrystalLoader
    from pyg_dim.data.splits import draw_labels, mask_labels, matbench_folds, split
    from pyg_dim.data.streaming import StreamingLoader
    from pyg_dim.data.symmetry import SymmetryClasses

__all__ = [
    "CompositionDataset",
    "CompositionGraph",
    "Crystal",
    "CrystalBatch",
    "CrystalDataset",
    "CrystalLoader",
    "DenseSupercell",
    "GraphCache",
    "LineGraph",
    "NearestNeighbors",
    "RadiusGraph",
    "StreamingLoader",
    "SymmetryClasses",
    "draw_labels",
    "load_dataset",
    "load_index_sets",
    "mask_labels",
    "matbench_folds",
    "save_index_sets",
    "split",
]

_MODULES = {
    "CompositionDataset": "compositions",
    "CompositionGraph": "composition_graph",
    "Crystal": "batch",
    "CrystalBatch": "batch",
    "CrystalDataset": "dataset",
    "CrystalLoader": "loader",
    "DenseSupercell": "graphs",
    "GraphCache": "graph_cache",
    "LineGraph": "line_graph",
    "NearestNeighbors": "graphs",
    "RadiusGraph": "graphs",
    "StreamingLoader": "streaming",
    "SymmetryClasses": "symmetry",
    "draw_labels": "splits",
    "load_dataset": "load",
    "load_index_sets": "index_sets",
    "mask_labels": "splits",
    "matbench_folds": "splits",
    "save_index_sets": "index_sets",
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
