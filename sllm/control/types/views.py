"""What those who watch the cluster see: its state, and what changes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeView

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


@dataclass(frozen=True, slots=True)
class DeploymentLoad:
    """What a deployment has to do, and with what."""

    queued: int
    """Requests that wait."""
    ready: int
    starting: int
    """Instances that are on their way."""


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


@dataclass(frozen=True, slots=True)
class ClusterDelta:
    """What lies between one revision and the next."""

    nodes: Part[NodeEntry]
    instances: Part[InstanceLoad]
    deployments: Part[DeploymentLoad]

    def __bool__(self) -> bool:
        return bool(self.nodes or self.instances or self.deployments)


@dataclass(frozen=True, slots=True)
class Revision:
    """One message to a reader."""

    number: int
    body: ClusterState | ClusterDelta
    """All of it, or what has changed since the revision before."""
