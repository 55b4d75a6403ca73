"""What has to survive a restart: deployments, pins, drains, limits, keys, and answers to calls.

All durable state goes through `Store`. Its methods block: they are called off the event loop,
one at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from sllm.control.cluster.specs import Deployment, ModelInfo
from sllm.control.tenants.limits import Limits
from sllm.control.types.access import ApiKey
from sllm.control.types.calls import Answer, Call, Done
from sllm.control.types.pins import Pin, Place

ANSWER_SECONDS: Final = 7 * 24 * 3600.0
"""How long an answer is kept for callers that repeat their call."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer to a call, as it is kept."""

    request_id: str
    fingerprint: str
    """Of the call."""
    answer: bytes
    """In the form of its `AnswerFormat`."""
    answered_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a store has."""

    deployments: tuple[Deployment, ...]
    pins: tuple[Pin, ...]
    drained: tuple[str, ...]
    answers: tuple[StoredAnswer, ...]
    tenants: Mapping[str, Limits] = field(default_factory=dict)
    """What tenants may take."""
    keys: tuple[ApiKey, ...] = ()

    @property
    def anything(self) -> bool:
        """Whether it is of any use."""
        parts = (self.deployments, self.pins, self.drained, self.answers, self.tenants, self.keys)
        return any(parts)


class Store(Protocol):
    """Each method is one transaction: after it returns, what it did survives any crash.

    Each raises errors.StateUnavailable if nothing can be read or stored, and has then done nothing.
    """

    def check(self) -> None:
        """Looks whether what is stored is still there.

        Raises:
            errors.StateUnavailable: It is not.
        """
        ...

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

    def tenants(self) -> dict[str, Limits]:
        """What tenants may take, of those who have limits."""
        ...

    def put_tenant(self, tenant: str, limits: Limits, call: Call[Done], now: float) -> None:
        """Stores what a tenant may take, unless the call is repeated."""
        ...

    def keys(self) -> list[ApiKey]:
        """All of them, those included that are revoked or expired."""
        ...

    def put_key(self, key: ApiKey, call: Call[ApiKey], now: float) -> ApiKey:
        """Stores a key, or changes it, as `put` stores a deployment."""
        ...

    def remember(self, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """Stores nothing but the answer to a call, as `put` does."""
        ...

    def contents(self) -> Contents:
        """All that is stored, for another store.

        Raises:
            errors.StartFailed: Something of it cannot be read.
        """
        ...

    def fill(self, contents: Contents) -> None:
        """Stores all that another store had, or nothing of it.

        Raises:
            errors.StartFailed: Something is stored here already.
        """
        ...

    def close(self) -> None:
        """Ends the use of the store."""
        ...
