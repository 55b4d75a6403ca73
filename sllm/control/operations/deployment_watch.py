"""A deployment as those who watch it see it: how it is doing, whenever that changes."""

from collections.abc import AsyncGenerator

from sllm import errors
from sllm.control.state.state import State
from sllm.control.state.statuses import status_of
from sllm.control.types.status import DeploymentStatus


class DeploymentWatch:
    """Tells the watchers of deployments. One that is slow sees several changes as one."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._closing = False

    async def follow(self, name: str) -> AsyncGenerator[DeploymentStatus]:
        """How a deployment is doing, now and whenever that changes, until it is deleted.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
            errors.ShuttingDown: The control plane is going down.
        """
        changes = self._state.changes
        status = status_of(self._state, name)
        changed = changes.changed(name)  # before the yield: it changes meanwhile as well
        yield status
        while True:
            await changed.wait()
            if self._closing:
                raise errors.ShuttingDown("the control plane is going down; watch again")
            if name not in self._state.deployments:
                return
            changed = changes.changed(name)
            if (now := status_of(self._state, name)) != status:
                status = now
                yield status

    def end_streams(self) -> None:
        """Ends the streams of watchers with ShuttingDown."""
        self._closing = True
        for name in self._state.deployments:
            self._state.changes.notify(name)
