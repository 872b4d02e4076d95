"""The batches of a run, in an order that a resumed run takes up where it was left."""

from __future__ import annotations

from collections.abc import Iterator

from lightning import LightningDataModule

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.loader import CrystalLoader
from pyg_dim.training.devices import made_resident


class EpochBatches:
    """The batches of one epoch, which may begin in its middle.

    Lightning saves and restores the position of loaders that have ``state_dict`` and ``load_state_dict``.

    Args:
        loader: plans the batches of any epoch from its number.
        epoch: number of the epoch.
    """

    def __init__(self, loader: CrystalLoader, epoch: int) -> None:
        loader.set_epoch(epoch)
        self.loader = loader
        self.epoch = epoch
        self._position = 0
        self._skip = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[CrystalBatch]:
        skip, self._skip = self._skip, 0
        for position, batch in enumerate(self.loader.batches(skip), skip + 1):
            self._position = position
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin after the batches that were handed out before, unless that was another epoch or all of one."""
        if state["epoch"] == self.epoch and state["position"] < len(self):
            self._skip = self._position = state["position"]


class CrystalData(LightningDataModule):
    """Training and validation batches for Lightning; a new plan of training batches at every epoch.

    On a GPU the crystals are brought there once, by each process to its own, and batches are gathered and their graphs
    built there: nothing is copied in a step.

    Args:
        train: training batches, shuffled anew with the number of the epoch.
        val: validation batches, the same at every epoch; None for none.
    """

    def __init__(self, train: CrystalLoader, val: CrystalLoader | None) -> None:
        super().__init__()
        self.train = train
        self.val = val

    def setup(self, stage: str) -> None:
        """Bring the crystals to the device of this process; asked for by Lightning once that is chosen."""
        assert self.trainer is not None  # noqa: S101 - set by Lightning before
        for loader in (self.train, self.val):
            if loader is not None:
                loader.dataset = made_resident(loader.dataset, self.trainer.strategy.root_device)

    def train_dataloader(self) -> EpochBatches:
        """Batches of the present epoch; asked for at each (``reload_dataloaders_every_n_epochs=1``)."""
        assert self.trainer is not None  # noqa: S101 - set by Lightning before it asks for batches
        return EpochBatches(self.train, self.trainer.current_epoch)

    def val_dataloader(self) -> CrystalLoader | None:
        """Batches to validate on; not asked for where there are none (``limit_val_batches=0``)."""
        return self.val
