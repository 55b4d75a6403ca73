"""A worker, from its fork to the agent's connection to it."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from sllm import errors
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import WorkerSpec, Zygote

LaunchEngine = Callable[[str, str], Awaitable[Worker]]
"""Forks a worker of an engine, under an id."""

LaunchRanks = Callable[[str, str, int], Awaitable[Worker]]
"""The same, of so many processes."""


async def launch(
    zygote: Zygote,
    instance_id: str,
    socket: Path,
    environment: Mapping[str, str],
    ranks: int = 1,
) -> Worker:
    """Forks a worker of so many processes that serves on a socket.

    Raises:
        errors.StartFailed: It cannot make its socket, ended, or did not serve in time.
    """
    _see_to(socket.parent)
    forked = await zygote.fork(WorkerSpec(instance_id, socket, dict(environment), ranks))
    return Worker(forked, socket)


def _see_to(directory: Path) -> None:
    """Sees to it that workers can make their sockets, also where the node's directory was deleted.

    Raises:
        errors.StartFailed: They cannot.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.StartFailed(
            f"no worker can make its socket in {directory}: {error.strerror}; mend the node's "
            "directory, or restart it with another"
        ) from error
