"""Deep InfoMax pre-training for crystals as a PyTorch Geometric plugin."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pyg_dim.level import Level
from pyg_dim.pool import DIMPool
from pyg_dim.tape import Tape, record
from pyg_dim.wrap import unwrap, wrap

if TYPE_CHECKING:
    from pyg_dim.embedder import CrystalEmbedder
    from pyg_dim.evaluate.probe_regressor import ProbeRegressor
    from pyg_dim.prediction import predict
    from pyg_dim.training import export, push_to_hub
    from pyg_dim.training import load_encoder as load

__version__ = version("pyg-dim")
__all__ = [
    "CrystalEmbedder",
    "DIMPool",
    "Level",
    "ProbeRegressor",
    "Tape",
    "__version__",
    "export",
    "load",
    "predict",
    "push_to_hub",
    "record",
    "unwrap",
    "wrap",
]

_LAZY = {
    "CrystalEmbedder": ("pyg_dim.embedder", "CrystalEmbedder"),
    "ProbeRegressor": ("pyg_dim.evaluate.probe_regressor", "ProbeRegressor"),
    "export": ("pyg_dim.training", "export"),
    "load": ("pyg_dim.training", "load_encoder"),
    "predict": ("pyg_dim.prediction", "predict"),
    "push_to_hub": ("pyg_dim.training", "push_to_hub"),
}
"""Names that need more than PyTorch and PyG, and are imported where they are first used: where they are defined."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
