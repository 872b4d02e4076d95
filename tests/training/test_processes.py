"""Runs of two processes that exchange gradients (gloo on the CPU), against one process that accumulates them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyg_dim.cli import parse_train
from pyg_dim.data import CrystalLoader
from pyg_dim.data.prototypes import decorated_prototypes
from pyg_dim.training.checkpoints import read_checkpoint
from pyg_dim.training.module import TrainingModule
from pyg_dim.training.setup import prepare_data, prepare_encoder, prepare_objective

ROOT = Path(__file__).parents[2]
PATIENCE = 600
"""Seconds after which processes that need a few, on an idle machine, are taken to wait for each other."""


@pytest.fixture(scope="module")
def prototypes(tmp_path_factory):
    """Path of 30 crystals of 1 to 12 sites."""
    path = tmp_path_factory.mktemp("data") / "prototypes.parquet"
    decorated_prototypes(n=30, max_sites=12).to_parquet(path)
    return path


@pytest.fixture
def flags(prototypes, tmp_path):
    """``flags("--seed=1", encoder={...})``: command line of a run of two processes in 64 bit numbers."""

    def make(*changes, encoder):
        return [
            f"--data={prototypes}", f"--logdir={tmp_path / 'runs'}", "--name=run", "--epochs=1", "--lr=1e-3",
            "--precision=64", "--accelerator=cpu", "--no-compile", "--devices=2", *changes,
            *(f"--encoder.{name}={value}" for name, value in encoder.items()),
        ]  # fmt: skip

    return make


def run(arguments, status=0):
    """Run train.py to its end and give back what it wrote."""
    (text,) = run_all([[sys.executable, str(ROOT / "train.py"), *arguments]], status)
    return text


def run_all(commands, status=0, environments=None):
    """Run commands side by side to their end and give back what each wrote; where one hangs all are killed."""
    processes = [
        subprocess.Popen(  # noqa: S603
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
            start_new_session=True,
        )
        for command, variables in zip(commands, environments or [{}] * len(commands), strict=True)
    ]
    try:
        texts = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("processes wait for each other:\n" + "\n".join(process.communicate()[0] for process in processes))
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(texts)
    return texts


class OneProcess:
    """What two processes compute, in this one: gradients of pairs of batches are accumulated by crystals."""

    def __init__(self, arguments):
        options = parse_train(arguments)
        encoder, _ = prepare_encoder(options)
        data = prepare_data(options)
        objective = prepare_objective(options, encoder, data)
        self.module = TrainingModule(objective, options.lr, options.weight_decay, options.seed, {}).double()
        self.train, self.val = (
            CrystalLoader(data.dataset.subset(rows), encoder.graph, options.batch_sites, options.seed)
            if rows.numel()
            else None
            for rows in (data.train, data.val)
        )
        self.optimiser = self.module.configure_optimizers()

    def fit(self, epoch):
        """Train for an epoch; numbers of crystals of the batches, and the mean loss over crystals."""
        self.module.train()
        self.train.set_epoch(epoch)
        counts, total = [], 0.0
        batches = list(enumerate(self.train))
        for start in range(0, len(batches), 2):
            pair = batches[start : start + 2]
            self.optimiser.zero_grad()
            for number, batch in pair:
                torch.manual_seed(self.module._step_seed(0, epoch, number))
                loss = self.module.objective(batch)["total"]
                (loss * batch.num_graphs / sum(b.num_graphs for _, b in pair)).backward()
                total += loss.item() * batch.num_graphs
                counts.append(batch.num_graphs)
            self.optimiser.step()
        return counts, total / sum(counts)

    @torch.no_grad()
    def validate(self):
        """Numbers of crystals of the batches, and the mean loss over crystals."""
        self.module.eval()
        counts, total = [], 0.0
        for number, batch in enumerate(self.val):
            generator = torch.Generator().manual_seed(self.module._step_seed(1, 0, number))
            total += self.module.objective(batch, generator=generator)["total"].item() * batch.num_graphs
            counts.append(batch.num_graphs)
        return counts, total / sum(counts)

    def difference(self, checkpoint):
        """Largest difference of a parameter from that in a checkpoint, and from its value before training."""
        state = read_checkpoint(checkpoint)["state_dict"]
        return max((state[name] - value).abs().max().item() for name, value in self.module.named_parameters())


def curve(directory, tag):
    events = EventAccumulator(str(directory))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_sitenet_of_two_processes_equals_accumulated_halves(flags, options, tmp_path):
    # Of widths that the kernels serve: they compute here, the plain path in the one process below.
    wide = {"site_channels": 16, "pair_channels": 16, "attention_hidden": [16], "value_hidden": [16]}
    encoder = options().encoder | wide | {"noise": "none"}
    arguments = flags("--val-fraction=0.25", "--batch-sites=20", "--compile", encoder=encoder)
    directory = tmp_path / "runs" / "run"
    last = directory / "last.ckpt"
    one = OneProcess(arguments)
    untrained = {name: value.detach().clone() for name, value in one.module.named_parameters()}

    text = run(arguments)
    assert text.count("saved in") == 1
    counts, train = one.fit(0)
    # An odd number of batches of different size: the second process repeats one.
    assert counts == [2, 3, 4, 2, 4, 4, 4]
    assert one.difference(last) < 1e-10
    assert max((untrained[name] - value).abs().max() for name, value in one.module.named_parameters()) > 1e-3
    val_counts, val = one.validate()
    assert val_counts == [4, 2, 1]
    assert curve(directory, "train/total") == pytest.approx([train], rel=1e-6)
    assert curve(directory, "val/total") == pytest.approx([val], rel=1e-6)
    table = pd.read_csv(directory / "summary.csv")
    assert set(table["section"]) == {"loss", "probe"}
    assert not table[table["section"] == "probe"].duplicated().any()

    text = run(["--resume", str(last), "--epochs=2"])
    assert "epoch 2/2" in text
    one.fit(1)
    assert one.difference(last) < 1e-10
    assert curve(directory, "val/total") == pytest.approx([val, one.validate()[1]], rel=1e-6)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    # One file of events for each of fit and summary of the two runs; the second process has none.
    assert len(list(directory.glob("events.*"))) == 4
    assert not list(directory.rglob("*.tmp"))


CGCNN = {"site_channels": 8, "convolutions": 2, "crystal_channels": 8}


@pytest.mark.parametrize(
    ("changes", "encoder"),
    [
        ([], {"noise": "none"}),
        # Here a batch of one crystal has no false sample, and its critics get no gradient.
        (["--kinds=other"], {"estimator": "info_nce"}),
    ],
    ids=["jensen_shannon", "info_nce"],
)
def test_cgcnn_of_two_processes_equals_accumulated_halves(flags, tmp_path, changes, encoder):
    arguments = flags("--model=cgcnn", "--val-fraction=0", "--batch-sites=32", *changes, encoder=CGCNN | encoder)
    one = OneProcess(arguments)
    run(arguments)
    assert one.fit(0)[0] == [5, 5, 5, 7, 7, 1]
    assert one.difference(tmp_path / "runs" / "run" / "last.ckpt") < 1e-10


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def by_torchrun(program):
    """One machine with two processes."""
    return [[*TORCHRUN, "--standalone", "--nproc-per-node=2", *program]], None


def by_torchrun_on_two_machines(program):
    """Two agents that meet, as those of two machines do, each with one process."""
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    return [[*TORCHRUN, *meet, "--rdzv-id=test", "--local-addr=127.0.0.1", *program]] * 2, None


def by_srun_on_two_machines(program):
    """Two processes with what srun lets each know; there is no SLURM here."""
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NAME": "pretrain", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
           "SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0",
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # fmt: skip
    processes = [job | {"SLURM_PROCID": str(number), "SLURM_NODEID": str(number)} for number in range(2)]
    return [[sys.executable, *program]] * 2, processes


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize(
    ("launch", "devices"), [(by_torchrun, 2), (by_torchrun_on_two_machines, 1), (by_srun_on_two_machines, 1)]
)
def test_launchers_start_what_two_processes_compute(flags, tmp_path, launch, devices):
    arguments = flags("--model=cgcnn", "--val-fraction=0", "--batch-sites=32", encoder=CGCNN | {"noise": "none"})
    one = OneProcess(arguments)
    program = [str(ROOT / "train.py"), *arguments, f"--devices={devices}", f"--num-nodes={2 // devices}"]
    commands, environments = launch(program)
    texts = run_all(commands, environments=environments)
    assert sum(text.count("saved in") for text in texts) == 1
    one.fit(0)
    assert one.difference(tmp_path / "runs" / "run" / "last.ckpt") < 1e-10
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
