"""What has happened between two pictures of the cluster."""

import dataclasses

import pytest

from sllm.cli.changes import Change, changes
from sllm.client.types.deployments import Instance
from sllm.client.types.enums import InstanceState, Tier
from sllm.client.types.nodes import CheckpointCopy, Node
from sllm.client.types.operations import Cluster, DeploymentLoad, InstanceLoad

NODE = Node("n-1", "host:1", "h", (), 1, 0, (), (), None, 5.0)
INSTANCE = InstanceLoad(
    Instance("i-1", "tiny", "n-1", InstanceState.STARTING, 0, 1, "d", 0.0, 7), 0, 0
)
DEPLOYED = DeploymentLoad("tiny", 0, 0, 0)
EMPTY = Cluster(1, (), (), ())


def _with(**parts: object) -> Cluster:
    return dataclasses.replace(EMPTY, **parts)  # type: ignore[arg-type]  # of a test's own


def _ready() -> InstanceLoad:
    ready = dataclasses.replace(INSTANCE.instance, state=InstanceState.READY)
    return dataclasses.replace(INSTANCE, instance=ready)


COPY = CheckpointCopy("abc", Tier.DRAM, 1, 1, (), leased=False)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (EMPTY, EMPTY, []),
        (EMPTY, _with(nodes=(NODE,)), [("NODE", "n-1", "ADDED")]),
        (_with(nodes=(NODE,)), EMPTY, [("NODE", "n-1", "GONE")]),
        (
            _with(nodes=(NODE,)),
            _with(nodes=(dataclasses.replace(NODE, draining=True),)),
            [("NODE", "n-1", "DRAINING")],
        ),
        (
            _with(nodes=(dataclasses.replace(NODE, draining=True),)),
            _with(nodes=(NODE,)),
            [("NODE", "n-1", "UNDRAINED")],
        ),
        (
            _with(nodes=(NODE,)),
            _with(nodes=(dataclasses.replace(NODE, connected_at=6.0),)),
            [("NODE", "n-1", "RECONNECTED")],
        ),
        (
            _with(nodes=(NODE,)),
            _with(nodes=(dataclasses.replace(NODE, copies=(COPY,)),)),
            [("CHECKPOINT", "abc", "ADDED")],
        ),
        (
            _with(nodes=(dataclasses.replace(NODE, copies=(COPY,)),)),
            _with(nodes=(NODE,)),
            [("CHECKPOINT", "abc", "GONE")],
        ),
        (
            EMPTY,
            _with(deployments=(DEPLOYED,), instances=(INSTANCE,)),
            [("DEPLOYMENT", "tiny", "ADDED"), ("INSTANCE", "i-1", "STARTING")],
        ),
        (
            _with(instances=(INSTANCE,)),
            _with(instances=(_ready(),)),
            [("INSTANCE", "i-1", "READY")],
        ),
        (
            _with(deployments=(DEPLOYED,), instances=(INSTANCE,)),
            EMPTY,
            [("INSTANCE", "i-1", "GONE"), ("DEPLOYMENT", "tiny", "GONE")],
        ),
        (
            _with(instances=(INSTANCE,)),
            _with(instances=(dataclasses.replace(INSTANCE, in_flight=3, generated_tokens=9),)),
            [],
        ),
    ],
)
def test_each_change_is_told_once(
    before: Cluster, after: Cluster, told: list[tuple[str, str, str]]
) -> None:
    found: list[Change] = list(changes(before, after))
    assert [(one.kind, one.name, one.what) for one in found] == told
