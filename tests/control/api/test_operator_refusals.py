"""What operators must not ask: a typed error that says what to do, and nothing has changed."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster
from tests.control.fake_node import MIB, FakeNode
from tests.support import assert_eventually

NEGATIVE, ZERO = Duration(seconds=-1), Duration()
AGES = Duration(seconds=70_000_000 * 3600)
"""An end after the year 9999, which no Timestamp can say."""
DRAM, SSD = pb.TIER_DRAM, pb.TIER_SSD
STREAMS = {"Pin", "Prefetch", "DrainNode"}

Fields = dict[str, Any]
DEFAULTS: dict[str, Fields] = {
    "Pin": {"deployment": "tiny", "tier": DRAM, "node_id": "n1"},
    "Prefetch": {"deployment": "tiny", "tier": DRAM},
    "Unpin": {"deployment": "tiny"},
    "DrainNode": {"node_id": "n1"},
    "UndrainNode": {"node_id": "n1"},
    "ExplainPlacement": {"deployment": "tiny"},
}
ROWS: dict[str, tuple[str, Fields, type[errors.SllmError]]] = {
    "explain an unknown deployment": (
        "ExplainPlacement",
        {"deployment": "nobody"},
        errors.DeploymentNotFound,
    ),
    "pin an unknown deployment": ("Pin", {"deployment": "nobody"}, errors.DeploymentNotFound),
    "pin on an unknown node": ("Pin", {"node_id": "n9"}, errors.NodeNotFound),
    "pin on no node": ("Pin", {"node_id": ""}, errors.InvalidArgument),
    "pin on no tier": ("Pin", {"tier": 0}, errors.InvalidArgument),
    "pin on a remote tier": ("Pin", {"tier": pb.TIER_REMOTE}, errors.InvalidArgument),
    "pin on a device": ("Pin", {"tier": pb.TIER_DEVICE}, errors.InvalidArgument),
    "pin on a tier that there is not": ("Pin", {"tier": 99}, errors.InvalidArgument),
    "pin for no time": ("Pin", {"ttl": ZERO}, errors.InvalidArgument),
    "pin for a negative time": ("Pin", {"ttl": NEGATIVE}, errors.InvalidArgument),
    "pin for ages": ("Pin", {"ttl": AGES}, errors.InvalidArgument),
    "pin by an endless id": ("Pin", {"request_id": "x" * 257}, errors.InvalidArgument),
    "pin what is larger than the tier": ("Pin", {"deployment": "large"}, errors.ModelTooLarge),
    "prefetch an unknown deployment": (
        "Prefetch",
        {"deployment": "nobody"},
        errors.DeploymentNotFound,
    ),
    "prefetch to an unknown node": ("Prefetch", {"node_id": "n9"}, errors.NodeNotFound),
    "prefetch nothing": ("Prefetch", {"deployment": ""}, errors.InvalidArgument),
    "prefetch what is no URL": ("Prefetch", {"source": "models/tiny"}, errors.InvalidSource),
    "prefetch in an unknown dtype": (
        "Prefetch",
        {"source": "/models/tiny", "dtype": "float12"},
        errors.InvalidArgument,
    ),
    "prefetch to no tier": ("Prefetch", {"tier": 0}, errors.InvalidArgument),
    "prefetch to a device": ("Prefetch", {"tier": pb.TIER_DEVICE}, errors.InvalidArgument),
    "prefetch for no time": ("Prefetch", {"ttl": ZERO}, errors.InvalidArgument),
    "prefetch for a negative time": ("Prefetch", {"ttl": NEGATIVE}, errors.InvalidArgument),
    "prefetch for ages": ("Prefetch", {"ttl": AGES}, errors.InvalidArgument),
    "prefetch what is larger than the node's tier": (
        "Prefetch",
        {"deployment": "large", "node_id": "n1"},
        errors.ModelTooLarge,
    ),
    "prefetch what is larger than every tier": (
        "Prefetch",
        {"deployment": "large"},
        errors.ModelTooLarge,
    ),
    "unpin an unknown deployment": ("Unpin", {"deployment": "nobody"}, errors.DeploymentNotFound),
    "unpin what is not pinned": ("Unpin", {}, errors.PinNotFound),
    "unpin a device": ("Unpin", {"tier": pb.TIER_DEVICE}, errors.InvalidArgument),
    "drain an unknown node": ("DrainNode", {"node_id": "n9"}, errors.NodeNotFound),
    "drain no node": ("DrainNode", {"node_id": ""}, errors.NodeNotFound),
    "drain with a negative grace": ("DrainNode", {"grace": NEGATIVE}, errors.InvalidArgument),
    "drain with a grace of ages": ("DrainNode", {"grace": AGES}, errors.InvalidArgument),
    "drain the last node with work": ("DrainNode", {}, errors.NodeNeeded),
    "undrain an unknown node": ("UndrainNode", {"node_id": "n9"}, errors.NodeNotFound),
}


async def call(cluster: Cluster, method: str, fields: Fields) -> Any:
    request = getattr(cluster_pb, f"{method}Request")(**{**DEFAULTS[method], **fields})
    ask = cluster.caller.stream if method in STREAMS else cluster.caller.ask
    return await ask(method, request)


@pytest.fixture
async def busy(cluster: Cluster) -> FakeNode:
    """One node that serves a request of "tiny", and is too small for "large" by now."""
    node = await cluster.add_node("n1")
    node.script.model.size_bytes = 60 * MIB
    await cluster.caller.deploy("large", "file:///models/large")
    await assert_eventually(lambda: len(node.copies) == 1)
    node.script.model.size_bytes = 10 * MIB
    await cluster.caller.deploy()
    await assert_eventually(lambda: len(node.copies) == 2)
    node.shrink(dram_mib=40)

    async def shrunk() -> bool:
        return (await cluster.caller.node()).tiers[1].capacity_bytes == 40 * MIB

    await assert_eventually(shrunk)
    node.script.before_finish.shut()
    await cluster.caller.generate().until("tokens")
    return node


@pytest.mark.parametrize("what", ROWS)
async def test_it_is_refused(cluster: Cluster, busy: FakeNode, what: str) -> None:
    method, fields, expected = ROWS[what]
    before = busy.names()
    with pytest.raises(expected) as caught:
        await call(cluster, method, fields)
    assert type(caught.value) is expected
    assert len(str(caught.value)) > 20
    assert busy.names() == before
    assert not busy.holds()
    assert not (await cluster.caller.node()).draining


async def test_a_pin_larger_than_the_tier_is_refused_with_the_numbers(
    cluster: Cluster, busy: FakeNode
) -> None:
    numbers = rf"takes {60 * MIB} bytes, and the DRAM tier of n1 has {40 * MIB}"
    with pytest.raises(errors.ModelTooLarge, match=numbers):
        await call(cluster, "Pin", {"deployment": "large"})


@pytest.mark.parametrize("method", ["Pin", "Prefetch"])
async def test_a_drained_node_takes_nothing(cluster: Cluster, busy: FakeNode, method: str) -> None:
    busy.script.before_finish.open()
    await call(cluster, "DrainNode", {"force": True})
    with pytest.raises(errors.NodeDraining, match="undrain it first"):
        await call(cluster, method, {"node_id": "n1"})
