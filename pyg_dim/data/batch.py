"""A batch of crystals."""

from __future__ import annotations

from torch_geometric.data import Data


class CrystalBatch(Data):
    """Crystals side by side in flat tensors; the fields are those of :mod:`pyg_dim.data.keys`.

    It is built directly by gathering from the flat tensors of a data set, not by collating one object per crystal.
    """

    @property
    def num_graphs(self) -> int:
        """Number of crystals B, known without asking the device."""
        return self.ptr.numel() - 1
