"""What those who watch the cluster see: its state, and what changes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeView
from sllm.control.types.receipts import Receipt
from sllm.control.types.status import Loading

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A node."""

    view: NodeView
    """Compared by identity: another one is a change."""
    draining: bool


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """An instance, and what the router has it do."""

    instance: Instance
    in_flight: int
    tokens: int
    """Relayed from it so far."""
    loading: Loading | None = None
    """How far its start is. None: it runs, or its node has told nothing yet."""
    moving_to: tuple[str, ...] = ()
    """Instances to which generations of it are being migrated."""


@dataclass(frozen=True, slots=True)
class DeploymentLoad:
    """What a deployment has to do, and with what."""

    queued: int
    """Requests that wait."""
    ready: int
    starting: int
    """Instances that are on their way."""


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that the router has had."""

    request_id: str
    deployment: str
    ended_at: float
    """Seconds since the epoch."""
    seconds: float
    """From its being taken."""
    outcome: str
    """"OK", "GAVE_WAY", or the reason of its error."""
    generated_tokens: int
    receipt: Receipt | None
    """None: it has not come to its end."""
    adapter: str = ""
    """Name of the adapter over the deployment that it was for. Empty: for none."""
    adapter_identity: str = ""
    """Of what that adapter was."""


@dataclass(frozen=True, slots=True)
class Part(Generic[Entry]):
    """Entries by id that are new or changed, and the ids of those that are gone."""

    changed: Mapping[str, Entry]
    gone: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The whole state at one moment, by ids and names."""

    nodes: Mapping[str, NodeEntry] = field(default_factory=dict)
    instances: Mapping[str, InstanceLoad] = field(default_factory=dict)
    deployments: Mapping[str, DeploymentLoad] = field(default_factory=dict)
    ended: tuple[EndedRequest, ...] = ()
    """The latest, in the order in which they have ended."""


@dataclass(frozen=True, slots=True)
class ClusterDelta:
    """What lies between one revision and the next."""

    nodes: Part[NodeEntry]
    instances: Part[InstanceLoad]
    deployments: Part[DeploymentLoad]
    ended: tuple[EndedRequest, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.nodes or self.instances or self.deployments or self.ended)


@dataclass(frozen=True, slots=True)
class Revision:
    """One message to a reader."""

    number: int
    body: ClusterState | ClusterDelta
    """All of it, or what has changed since the revision before."""
