"""Launchers, as they show in the environment of a process."""

from __future__ import annotations

import pytest

from pyg_dim.training.launch import launcher, require_processes
from pyg_dim.training.run import train

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "GROUP_RANK": "1"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1", "SLURM_JOB_NAME": "pretrain"}  # fmt: skip


@pytest.fixture
def started(monkeypatch):
    """``started(TORCHRUN)``: an environment that a launcher has made."""

    def make(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(("variables", "name"), [(TORCHRUN, "torchrun"), (SRUN, "SLURM")])
def test_a_launcher_tells_which_process_this_is(started, variables, name):
    started(variables)
    found, environment = launcher()
    assert found == name
    assert (environment.global_rank(), environment.local_rank(), environment.world_size()) == (3, 1, 4)
    require_processes(2, 2)


def test_torchrun_within_a_job_of_slurm_is_torchrun(started):
    started(SRUN | TORCHRUN)
    assert launcher()[0] == "torchrun"


def test_a_process_of_its_own_has_none():
    assert launcher() is None
    require_processes(4, 1)


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
@pytest.mark.parametrize(("devices", "num_nodes"), [(1, 1), (2, 1), (4, 2)])
def test_another_number_of_processes_is_refused(started, options, tmp_path, variables, devices, num_nodes):
    started(variables)
    with pytest.raises(
        ValueError, match=rf"has started 4 processes, and --devices {devices} on --num-nodes {num_nodes}"
    ):
        train(options(devices=devices, num_nodes=num_nodes))
    assert not (tmp_path / "runs").exists()


def test_several_machines_need_a_launcher(options, tmp_path):
    with pytest.raises(ValueError, match="--num-nodes 2: start the command on each machine by torchrun or srun"):
        train(options(num_nodes=2))
    assert not (tmp_path / "runs").exists()


def test_a_job_that_lacks_something_says_what(started):
    started({name: value for name, value in SRUN.items() if name != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(ValueError, match="ntasks-per-node"):
        launcher()
