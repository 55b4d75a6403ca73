"""Instances: those that run, and those that are planned."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from sllm.control.cluster.specs import EngineConfig


class InstanceState(IntEnum):
    """Where an instance is in its life, which only goes forward."""

    STARTING = 1
    READY = 2
    DRAINING = 3
    GONE = 4


class LoadedAdapter(NamedTuple):
    """An adapter that an instance has."""

    deployment: str
    """Its name."""
    identity: str
    digest: str = ""
    """Of its checkpoint. Empty: not known."""


class KvShare(NamedTuple):
    """What a KV cache has of memory that follows what its requests need."""

    size_bytes: int
    """That it may take now."""
    used_bytes: int
    """Of that, what its requests have."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a deployment on one node."""

    instance_id: str
    deployment: str
    node_id: str
    state: InstanceState
    kv_bytes: int
    """Share of the node's KV budget."""
    digest: str = ""
    """Checkpoint that it serves. Empty: not yet known."""
    running: int = 0
    """Requests under way, as last reported."""
    started_at: float = 0.0
    """Seconds since the epoch."""
    worker_pid: int = 0
    unread: tuple[str, ...] = ()
    """Ids of requests that go on although nobody reads them."""
    device: int | None = None
    """Index of the device that it runs on. None: not yet chosen, or the pool is the device."""
    identity: str = ""
    """Of what it serves, as in ModelInfo. Empty: not yet known."""
    own_bytes: int = 0
    """Memory that it takes for itself, as measured last. 0: not yet measured."""
    engine: str = ""
    """That it runs on. Empty: not known."""
    private_bytes: int | None = None
    """Of `own_bytes`, what it was expected to take for copies of its own. None: not known."""
    config: EngineConfig | None = None
    """What it was started with. None: not known."""
    adapters: tuple[LoadedAdapter, ...] = ()
    """Those that it has."""
    ready_made: bool = False
    """Whether its weights were made ready for its engine; expected, until it is READY."""
    kv_share: KvShare | None = None
    """What its KV cache has now. None: `kv_bytes`, and no other."""

    @property
    def takes_adapters(self) -> bool:
        """Whether requests for adapters may go there; one that does not tell is taken to."""
        return self.config is None or self.config.max_adapters > 0

    def has_adapter(self, identity: str) -> bool:
        """Whether requests for an adapter of this identity need not wait for it."""
        return any(one.identity == identity for one in self.adapters)

    @property
    def digests(self) -> set[str]:
        """Of the checkpoints that it holds in place."""
        return {self.digest, *(one.digest for one in self.adapters)}

    def serves(self, identity: str) -> bool:
        """Whether it may serve what has this identity: unknown ones are taken for the same."""
        return not identity or not self.identity or self.identity == identity


@dataclass(frozen=True, slots=True)
class Planned:
    """An instance that was decided on; its start has not ended yet."""

    instance: Instance
    checkpoint: str
    """Key of its checkpoint: the digest, or the source while no digest is known."""
    size_bytes: int
    """Of its weights, for which room is kept, in the form that it takes."""
    made_for: str = ""
    """What they were made ready for. Empty: they are as published."""
