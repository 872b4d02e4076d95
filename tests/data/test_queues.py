from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pyg_dim.data import CrystalLoader, DenseSupercell, queues
from pyg_dim.data.batch import CrystalBatch
from pyg_dim.data.queues import BatchQueue


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What is asked of CUDA, in order, by streams that are none; "steps" is that of every thread outside."""
    log: list[str] = []
    inside = threading.local()

    class Stream:
        def __init__(self, name):
            self.name = str(name)

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def record_event(self):
            log.append(f"{self.name} notes an event")
            return f"event of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event}")

    @contextmanager
    def stream(chosen):
        inside.stream = chosen
        yield
        del inside.stream

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: getattr(inside, "stream", Stream("steps")))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, s: log.append(f"{tensor.tolist()} in {s.name}"))
    monkeypatch.setattr(queues, "_stream", queues._stream.__wrapped__)
    return log


def made(log, number=1):
    log.append(f"made in {torch.cuda.current_stream(None).name}")
    return CrystalBatch(z=torch.tensor([number]), max_sites=1)


def test_a_gpu_makes_batches_beside_the_steps_that_wait_for_them(log) -> None:
    queue = BatchQueue(torch.device("cuda", 1))
    assert log == ["cuda:1 waits for steps"]
    log.clear()
    batch, done = queue.make(lambda: made(log))
    assert log == ["made in cuda:1", "cuda:1 notes an event"]
    log.clear()
    assert queue.receive(batch, done) is batch
    assert log == ["steps waits for event of cuda:1", "[1] in steps"]


def test_a_gpu_without_a_number_is_the_current_one_of_the_thread_that_asks(log) -> None:
    BatchQueue(torch.device("cuda"))
    assert log == ["cuda:2 waits for steps"]


def test_a_loader_queues_what_its_thread_does(log, make_dataset, random_crystal, monkeypatch) -> None:
    monkeypatch.setattr(CrystalLoader, "_device", lambda self: torch.device("cuda", 0))
    monkeypatch.setattr(CrystalLoader, "_build", lambda self, planned: made(log, int(planned[0])))
    crystals = make_dataset([random_crystal(np.random.default_rng(k), 3) for k in range(4)])
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=3, shuffle=False)
    for batch in loader:
        log.append(f"step {batch.z.tolist()}")
    assert (log[0], log[-1]) == ("cuda:0 waits for steps", "steps waits for cuda:0")
    assert log.count("made in cuda:0") == log.count("cuda:0 notes an event") == 4
    for number in range(4):
        # The next one may be in the making meanwhile.
        mine = [entry for entry in log if not entry.startswith(("made", "cuda:0 notes"))]
        step = mine.index(f"step [{number}]")
        assert mine[step - 2 : step] == ["steps waits for event of cuda:0", f"[{number}] in steps"]
    # Left early, with a batch in the making.
    log.clear()
    batches = loader.batches()
    next(batches)
    batches.close()
    assert log[-1] == "steps waits for cuda:0"
    assert log.count("made in cuda:0") == 2


def test_on_a_cpu_there_is_no_queue(log) -> None:
    queue = BatchQueue(torch.device("cpu"))
    batch, done = queue.make(lambda: made(log))
    assert queue.receive(batch, done) is batch
    assert log == ["made in steps"]
