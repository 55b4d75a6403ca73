"""What deployments' models make of text: asked of nodes, whether or not an instance runs."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from sllm import errors
from sllm.control.cluster.instances import InstanceState
from sllm.control.cluster.specs import Deployment
from sllm.control.deployments.inspection import Inspector
from sllm.control.state.state import State
from sllm.control.wire.node_client import Node

Answer = TypeVar("Answer")

_OF_THE_NODE: Final = (
    errors.SourceNotFound,
    errors.Unavailable,
    errors.NoCapacity,
    errors.EngineUnavailable,
    errors.DeadlineExceeded,
    errors.NotServed,
)
"""What keeps one node from answering, and may keep no other."""
_ASKED_NODES: Final = 4
"""One after the other, until one answers."""


class TextQuestions:
    """Belongs to the event loop."""

    def __init__(self, state: State, inspector: Inspector) -> None:
        self._state = state
        self._inspector = inspector

    def deployment(self, name: str) -> Deployment:
        """The deployment whose files answer a question: of an adapter, its base.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        return self._state.serving(name)

    def named(self, name: str) -> Deployment:
        """The deployment that a question names.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        return self._state.deployment(name)

    async def ask(
        self, deployment: Deployment, question: Callable[[Node], Awaitable[Answer]]
    ) -> Answer:
        """The answer of the first node that has one; those that have the model are asked first.

        Raises:
            errors.NoNodes: There is none to ask.
            errors.SllmError: What the last one said, or any that has understood the question.
        """
        error: errors.SllmError = errors.NoNodes(
            f"no node is connected that could read the files of {deployment.name}; start one and "
            "try again",
            retry_after=1.0,
        )
        for node in self._nodes(deployment)[:_ASKED_NODES]:
            try:
                return await question(node)
            except _OF_THE_NODE as failure:
                error = failure
        raise error

    def _nodes(self, deployment: Deployment) -> list[Node]:
        nodes = self._inspector.with_engine(deployment.spec.engine.engine)
        return sorted(nodes, key=lambda node: self._distance(node.node_id, deployment))

    def _distance(self, node_id: str, deployment: Deployment) -> int:
        view = self._state.fleet.nodes[node_id]
        running = (
            one.deployment == deployment.name and one.state is InstanceState.READY
            for one in view.instances.values()
        )
        if any(running):
            return 0
        return 1 if view.copies_of(deployment.model.digest) else 2
