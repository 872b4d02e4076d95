"""Deep InfoMax pre-training for crystals as a PyTorch Geometric plugin."""

from importlib.metadata import version

from pyg_dim.level import Level
from pyg_dim.pool import DIMPool
from pyg_dim.tape import Tape, record
from pyg_dim.wrap import unwrap, wrap

__version__ = version("pyg-dim")
__all__ = ["DIMPool", "Level", "Tape", "__version__", "record", "unwrap", "wrap"]
