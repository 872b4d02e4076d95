"""What has to be as it was for a run to go on from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pyg_dim.training.checkpoints import METRICS, SECTION, read_checkpoint, require_model
from pyg_dim.training.options import CHANGEABLE, TrainOptions


class ResumedRun:
    """The run that a checkpoint was left by.

    Args:
        path: the checkpoint.
        model: architecture that the resumed run is to train.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint of a run, or of another architecture.
    """

    def __init__(self, path: str | Path, model: str) -> None:
        self.path = Path(path)
        self.contents = read_checkpoint(path)
        if "optimizer_states" not in self.contents:
            raise ValueError(
                f"{path} holds an encoder alone, not the state of a run: start a new run with --init {path}"
            )
        require_model(model, self.contents, path)
        self.about = self.contents[SECTION]

    def require_same_options(self, options: TrainOptions) -> None:
        """Check that the resumed run computes what it was started to compute, and where its files lie.

        Args:
            options: those of the resumed run, with all options of the architecture.

        Raises:
            ValueError: an option that is not among :data:`pyg_dim.training.options.CHANGEABLE` is another one, or the
                folder asked for is not that of the checkpoint.
        """
        saved = TrainOptions.from_dict(self.about["options"])
        for entry in fields(TrainOptions):
            now, before = getattr(options, entry.name), getattr(saved, entry.name)
            if entry.name not in CHANGEABLE and now != before:
                raise ValueError(
                    "--resume continues a run with the options it was started with, but "
                    f"{_changes(entry.name, before, now)}: leave that out, or start a new run from its encoder with "
                    f"--init {self.path}"
                )
        folder = self.path.resolve().parent
        # A folder that has been moved is no longer where the saved options say, and nobody asked for that place.
        other_logdir = options.logdir != saved.logdir and Path(options.logdir).resolve() != folder.parent
        other_name = options.name not in (None, saved.name, folder.name)
        if other_logdir or other_name:
            raise ValueError(
                f"--resume goes on in the folder of its checkpoint, {self.path.parent}: leave out --logdir and --name, "
                f"or start a new run from its encoder with --init {self.path}"
            )

    def require_same_data(self, summary: Mapping[str, Any]) -> None:
        """Check that the resumed run reads the crystals, and has the teacher, that it was started with.

        Args:
            summary: of the data read now, from :meth:`pyg_dim.training.setup.RunData.summary`.

        Raises:
            ValueError: it does not.
        """
        before = self.about["data"]
        if before["fingerprint"] != summary["fingerprint"]:
            raise ValueError(
                f"{self.path} was trained on {before['crystals']} crystals of {before['source']}; {summary['source']} "
                f"now gives {summary['crystals']}, or others: resume with the same data, or start a new run with "
                f"--init {self.path}"
            )
        # Runs from before there was a teacher do not tell.
        if before.get("teacher") != summary["teacher"]:
            raise ValueError(
                f"{self.path} was trained with another --teacher than the file that is there now: resume with the same "
                f"one, or start a new run with --init {self.path}"
            )

    def is_trained(self, epochs: int) -> bool:
        """Whether all epochs are done, so that only the comparison with the untrained encoder is missing.

        Args:
            epochs: number of epochs asked for.

        Returns:
            True after an interruption behind the last step; False where there is something to train.

        Raises:
            ValueError: nothing is left to do, or the checkpoint is of more epochs.
        """
        done = self.epochs_done
        if done < epochs:
            return False
        summary = self.path.with_name("summary.md")
        # An older one is of fewer epochs, from before the run was taken up again.
        summarised = summary.exists() and summary.stat().st_mtime >= self.path.stat().st_mtime
        if done > epochs or summarised or not self.about["data"]["val"]:
            raise ValueError(
                f"the run is complete: raise --epochs to go on (epochs in {self.path}: {done}, --epochs: {epochs})"
            )
        return True

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of everything that was logged, by tag; of a file that tells no such, none."""
        known = self.contents.get(METRICS)
        return {str(name): float(value) for name, value in known.items()} if isinstance(known, dict) else {}

    @property
    def epochs_done(self) -> int:
        """Epochs that the run has finished; one that was stopped in its middle is none."""
        try:
            # Counted before the checkpoint of an epoch is written, unlike "completed" and "epoch".
            return int(self.contents["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path} has no state of the training loop and cannot be resumed: start a new run with "
                f"--init {self.path}"
            ) from error


def _changes(name: str, before: Any, now: Any) -> str:
    """What an option was and is; of a dictionary only the entries that differ."""
    if not isinstance(before, dict):
        return f"{name} was {before!r} and is now {now!r}"
    pairs = {key: (before.get(key, "unknown"), now.get(key, "unknown")) for key in before | now}
    return ", ".join(_changes(f"{name}.{key}", *pair) for key, pair in pairs.items() if pair[0] != pair[1])
