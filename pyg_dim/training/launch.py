"""Launchers that start a program several times: torchrun and SLURM's srun."""

from __future__ import annotations

from typing import Final

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

_LAUNCHERS: Final[dict[str, type[ClusterEnvironment]]] = {
    "torchrun": TorchElasticEnvironment,
    "SLURM": SLURMEnvironment,
}
"""In the order in which Lightning looks for them: torchrun may be called within a job of SLURM."""


def launcher() -> tuple[str, ClusterEnvironment] | None:
    """Find out what has started this process as one of several.

    Returns:
        Its name, and Lightning's view of it, which knows how many processes there are and which one this is; None for
        a process that was started alone, or by Lightning itself.

    Raises:
        ValueError: a job of SLURM that does not tell what is needed; the message says what to change.
    """
    for name, kind in _LAUNCHERS.items():
        if kind.detect():
            try:
                return name, kind()
            except RuntimeError as error:
                raise ValueError(str(error)) from error
    return None


def require_processes(devices: int, num_nodes: int) -> None:
    """Check that as many processes were started as a run is to have, so that none waits for others or runs alone.

    Args:
        devices: processes on each machine.
        num_nodes: machines.

    Raises:
        ValueError: another number of processes, or several machines without a launcher.
    """
    found = launcher()
    if found is None:
        if num_nodes > 1:
            raise ValueError(
                f"--num-nodes {num_nodes}: start the command on each machine by torchrun or srun; nothing of the kind "
                "has started this process"
            )
        return
    name, environment = found
    if (size := environment.world_size()) != devices * num_nodes:
        raise ValueError(
            f"{name} has started {size} processes, and --devices {devices} on --num-nodes {num_nodes} are "
            f"{devices * num_nodes}: --devices is the number of processes on one machine"
        )
