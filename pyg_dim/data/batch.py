"""One crystal, and a batch of them."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data

from pyg_dim.data.keys import CLASS_COUNTS, LINE_INDEX, PAIR_INDEX, SITE_COUNT


class CrystalBatch(Data):
    """Crystals side by side in flat tensors; the fields are those of :mod:`pyg_dim.data.keys`.

    It is built directly by gathering from the flat tensors of a data set, not by collating one object per crystal.
    """

    @property
    def num_graphs(self) -> int:
        """Number of crystals B, known without asking the device."""
        return self.ptr.numel() - 1


class Crystal(Data):
    """One crystal, with the fields of :mod:`pyg_dim.data.keys`; PyG's ``DataLoader`` makes batches of them.

    Such a batch serves graphs and encoders like a :class:`CrystalBatch`; a graph is also a transform of one crystal.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Where the numbers of the next crystal of a batch start: line graphs join edges, not sites."""
        if key in CLASS_COUNTS:
            return self[CLASS_COUNTS[key]].numel()
        if key == PAIR_INDEX:
            return self[SITE_COUNT].numel()
        return self.num_edges if key == LINE_INDEX else super().__inc__(key, value, *args, **kwargs)

    @property
    def max_sites(self) -> int:
        """Sites of the largest crystal of the batch, or of this one."""
        return int(self.ptr.diff().max()) if "ptr" in self else self.z.numel()
