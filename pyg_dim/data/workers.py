"""Make the parts of an import in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.parts import join_parts, make_part, remove_part
from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import Entry

_WAITING: Final = 2
"""Parts for each process that are handed out at a time: what is read ahead stays in memory."""

Part = tuple[list[Entry], Path]


class Workers:
    """Processes that make parts; a crystal that kills its process is left out.

    Args:
        number: processes; with 1, parts are made in this one, at once.
        options: what is done to the crystals.
        done: called with the number of entries of each part that is finished.
    """

    def __init__(self, number: int, options: ImportOptions, done: Callable[[int], object]) -> None:
        self._number = number
        self._options = options
        self._done = done
        self._pool: ProcessPoolExecutor | None = None
        self._running: dict[Future[int], Part] = {}

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._running:
                self._collect()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def submit(self, entries: list[Entry], path: Path) -> None:
        """Have a part made; waits while many are being made.

        Args:
            entries: the crystals.
            path: file to write.
        """
        if self._pool is None:
            self._done(make_part(entries, self._options, path))
            return
        while len(self._running) >= _WAITING * self._number:
            self._collect()
        try:
            self._running[self._pool.submit(make_part, entries, self._options, path)] = entries, path
        except BrokenProcessPool:
            self._recover([*self._running.values(), (entries, path)])

    def _start(self) -> None:
        if self._number > 1:
            self._pool = _pool(self._number)

    def _collect(self) -> None:
        """Wait for some part."""
        finished, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in finished:
            try:
                count = future.result()
            except BrokenProcessPool:
                self._recover(list(self._running.values()))
                return
            del self._running[future]
            self._done(count)

    def _recover(self, parts: list[Part]) -> None:
        """A process died: make the parts under way again, one at a time, and find the crystal that kills."""
        self._running.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for entries, path in parts:
            self._make_apart(entries, path)
            self._done(len(entries))
        self._start()

    def _survives(self, entries: list[Entry], path: Path) -> bool:
        with _pool(1) as pool:
            try:
                pool.submit(make_part, entries, self._options, path).result()
            except BrokenProcessPool:
                return False
        return True

    def _make_apart(self, entries: list[Entry], path: Path) -> None:
        """Make a part in a process of its own, by halves if that dies: one may need more memory than there is."""
        if self._survives(entries, path):
            return
        if len(entries) == 1:
            fault = UnusableCrystalError("the reader crashed or ran out of memory")
            make_part([entries[0]._replace(kind="fault", content=fault)], self._options, path)
            return
        middle = len(entries) // 2
        # Under other names, or a half would be taken for the part when the import goes on after a stop.
        halves = [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(2)]
        try:
            self._make_apart(entries[:middle], halves[0])
            self._make_apart(entries[middle:], halves[1])
            join_parts(halves, path)
        finally:
            for half in halves:
                remove_part(half)


def _pool(number: int) -> ProcessPoolExecutor:
    # Not forked from this process: libraries with threads of their own do not survive that. A server that has imported
    # what is needed, and does nothing else, can be forked; where there is none, every process imports it again.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: BaseContext = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["__main__", make_part.__module__])
    return ProcessPoolExecutor(number, context, initializer=_prepare)


def _prepare() -> None:
    # Ctrl-C goes to all processes; the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's process waits for work even when the program that made it was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
