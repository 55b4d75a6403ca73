"""What nodes report of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sllm.control.cluster.init_times import InitKey, InitTime
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.tiers import Copy


@dataclass(frozen=True, slots=True)
class Full:
    """All that a node holds and runs."""

    facts: NodeFacts
    copies: tuple[Copy, ...] = ()
    instances: tuple[Instance, ...] = ()
    kept: Mapping[int, float] = field(default_factory=dict)
    """Of prompts whose beginnings it keeps, computed: by name, the seconds that it saves."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What has changed since the report before."""

    facts: NodeFacts | None
    copies: tuple[Copy, ...] = ()
    """One without resident bytes is gone."""
    instances: tuple[Instance, ...] = ()
    """One that is GONE is forgotten."""
    init_times: Mapping[InitKey, InitTime] = field(default_factory=dict)
    """Those that are new or changed."""
    kept: Mapping[int, float] = field(default_factory=dict)
    """The same."""
    kept_no_more: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """One message of a node."""

    node_id: str
    revision: int
    body: Full | Delta | None
    """None: a heartbeat, which repeats the last revision."""
