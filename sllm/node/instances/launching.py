"""A worker, from its fork to the agent's connection to it."""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2s
from pathlib import Path

from sllm import errors
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from sllm.node.instances.zygotes import Zygotes

LaunchEngine = Callable[[str, str], Awaitable[Worker]]
"""Forks a worker of an engine, under an id."""

LaunchRanks = Callable[[str, str, int], Awaitable[Worker]]
"""The same, of so many processes."""

SOCKET_NAME = 12
"""Letters of a socket's name, which follow from its worker's id."""


class Launcher:
    """Forks workers, each with a socket of its own in one directory."""

    def __init__(self, zygotes: Zygotes, directory: Path) -> None:
        self._zygotes = zygotes
        self._directory = directory

    async def launch(self, engine: str, worker_id: str, ranks: int = 1) -> Worker:
        """Forks a worker of an engine, of so many processes.

        Raises:
            errors.EngineUnavailable: This node does not have the engine.
            errors.StartFailed: As `fork`.
        """
        return await self.fork(self._zygotes.of(engine), worker_id, {}, ranks)

    async def fork(
        self, zygote: Zygote, worker_id: str, environment: Mapping[str, str], ranks: int
    ) -> Worker:
        """Forks a worker that has these variables beside those of its zygote.

        Raises:
            errors.StartFailed: It cannot make its socket, ended, or did not serve in time.
        """
        socket = self._socket(worker_id)
        _see_to(self._directory)
        forked = await zygote.fork(WorkerSpec(worker_id, socket, dict(environment), ranks))
        return Worker(forked, socket)

    def _socket(self, worker_id: str) -> Path:
        # Ids are as long as their callers like, and made of whatever they like; paths are not.
        name = blake2s(worker_id.encode(), digest_size=SOCKET_NAME // 2).hexdigest()
        return self._directory / f"{name}.sock"


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
