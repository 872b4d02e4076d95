"""Where the thread of a loader queues the work that makes batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from pyg_dim.data.batch import CrystalBatch

if TYPE_CHECKING:
    from typing import Self


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all loaders of a device: memory that was used on a stream is kept for that stream."""
    return torch.cuda.Stream(device)


class BatchQueue:
    """Work on a device that makes batches, in a queue beside that of the steps which use them.

    A thread starts on the first GPU and on the stream of the steps, whatever the thread that started it is on. There,
    every number that making a batch has to ask for (how many pairs there are) would be answered after the step under
    way. So that work gets a CUDA stream of its own. It may run while a step does; a batch that is received is waited
    for on the device, in the stream of the receiver, not on the host. On a CPU there are no queues: batches are made on
    the spot. Left as a context manager once its thread has ended.

    Args:
        device: where batches are made.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda" and device.index is None:
            # The current one of this thread; another thread has its own.
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self._stream = _stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            # What batches are made of was brought there in the stream of this thread.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Work for a batch that nobody takes any more may still read the data set, whose memory could be used again.
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def make(self, build: Callable[[], CrystalBatch]) -> tuple[CrystalBatch, torch.cuda.Event | None]:
        """Queue the work for a batch; in any thread.

        Args:
            build: makes it.

        Returns:
            The batch, for :meth:`receive` alone, and what tells when it is done.
        """
        if self._stream is None:
            return build(), None
        # Sets the device of the thread, too.
        with torch.cuda.stream(self._stream):
            return build(), self._stream.record_event()

    def receive(self, batch: CrystalBatch, done: torch.cuda.Event | None) -> CrystalBatch:
        """Take a batch over into the stream of the calling thread.

        Args:
            batch: from :meth:`make`.
            done: likewise.

        Returns:
            The batch.
        """
        if done is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(done)
            # Or the memory of a batch that is let go could become part of the next one while a step still reads it.
            batch.record_stream(here)
        return batch
