"""How a run writes its checkpoints, and reads the one that it goes on from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pyg_dim.data.replacing import replacing
from pyg_dim.training.checkpoints import LAST, read_checkpoint

BEST: Final = "best.ckpt"
"""File of the state of the lowest loss, in the folder of a run."""


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are replaced whole, and read without running any code of theirs.

    Lightning writes to the folder for temporary files of the system and moves the file from there. Where that is
    another disk, moving is copying, and a run that is killed or a disk that is full would leave half a checkpoint in
    place of the last good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint beside its place, then put it there.

        Args:
            checkpoint: plain values and tensors.
            path: file to write or replace.
            storage_options: not used.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(path) as file:
            file.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None, **options: Any
    ) -> dict[str, Any]:
        """Read a checkpoint; what callbacks remember of files is made to be of the folder that it lies in.

        Args:
            path: the file.
            map_location: not used; tensors come to the CPU.
            weights_only: not used; nothing but plain values and tensors is ever read.
            **options: not used.

        Returns:
            Its contents.
        """
        checkpoint = read_checkpoint(path)
        folder = Path(path).parent.resolve()
        callbacks = checkpoint.get("callbacks", {})
        checkpoint["callbacks"] = {name: _moved(state, folder) for name, state in callbacks.items()}
        return checkpoint


def _moved(state: Any, folder: Path) -> Any:
    """The state of a callback of a run whose folder may have been moved.

    Lightning forgets the lowest loss of a run in another folder, and so would replace ``best.ckpt`` by a worse one. It
    deletes the file that was the best before: no path out of a checkpoint may lead to another file.
    """
    if not isinstance(state, dict) or "best_model_path" not in state:
        return state

    best = str(folder / Path(str(state["best_model_path"])).name)
    if Path(best).name not in (BEST, LAST) or not Path(best).is_file():
        # Another folder than that of the callback: it begins anew.
        return state | {"dirpath": "", "best_model_path": ""}
    scores = list(state["best_k_models"].values()) if isinstance(state.get("best_k_models"), dict) else []
    return state | {
        "dirpath": str(folder),
        "best_model_path": best,
        "kth_best_model_path": best if scores else "",
        "last_model_path": "",
        "best_k_models": {best: scores[0]} if scores else {},
    }
