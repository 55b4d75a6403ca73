"""What has to survive a restart: deployments, pins, drains, and the answers to mutating calls.

All durable state goes through `Store`. Its methods block: they are called off the event loop,
one at a time.
"""

from collections.abc import Sequence
from typing import Protocol

from sllm.control.cluster.specs import Deployment, ModelInfo
from sllm.control.types.calls import Answer, Call, Done
from sllm.control.types.pins import Pin, Place


class Store(Protocol):
    """Each method is one transaction: after it returns, what it did survives any crash."""

    def deployments(self) -> list[Deployment]:
        """All of them, in order of their names."""
        ...

    def recall(self, call: Call[Answer]) -> Answer | None:
        """The first answer to a call that is repeated, or None if it is new.

        Raises:
            errors.RequestIdInUse: The id was used for a call of other content.
        """
        ...

    def put(self, deployment: Deployment, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """Stores a deployment together with the answer to its call; seconds since the epoch.

        Returns:
            `answer` itself; or the first answer, if the call turns out to be repeated: then nothing
            is stored.
        """
        ...

    def delete(self, name: str, call: Call[Done], now: float) -> None:
        """Removes a deployment with its pins, unless the call is repeated."""
        ...

    def set_model(self, name: str, model: ModelInfo) -> None:
        """Stores what has become known of a deployment's model. Unknown names are ignored."""
        ...

    def pins(self) -> list[Pin]:
        """All of them, those included whose time is up."""
        ...

    def put_pin(self, pin: Pin, call: Call[Pin], now: float) -> None:
        """Stores a pin, or changes it, and the pin as the answer, unless the call is repeated."""
        ...

    def delete_pins(
        self, places: Sequence[Place], call: Call[Answer], answer: Answer, now: float
    ) -> Answer:
        """Removes pins, as `put` stores a deployment."""
        ...

    def drained(self) -> list[str]:
        """The nodes that are being drained."""
        ...

    def set_drained(self, node_id: str, drained: bool, call: Call[Done], now: float) -> None:
        """Notes that a node is being drained, or no more, unless the call is repeated."""
        ...

    def remember(self, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """Stores nothing but the answer to a call, as `put` does."""
        ...

    def close(self) -> None:
        """Ends the use of the store."""
        ...
