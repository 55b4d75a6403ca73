"""The reports of a node that is not there."""

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import fleet_service_pb2 as fleet
from serverlessllm.v1 import types_pb2 as types

NOWHERE: Final = "127.0.0.1:1"
"""An address that refuses at once."""


def reports(node_id: str, source: str) -> list[Message]:
    """What a node reports that nobody can reach: all of it, then what has changed."""
    full = fleet.FullReport(node=_ghost(node_id), instances=[_ghostly_instance(node_id)])
    delta = fleet.DeltaReport(
        node=_ghost(node_id),
        copies=[_copy(types.TIER_DRAM, source)],
        instances=[_ghostly_instance(node_id)],
        init_observations=[_init_observation()],
    )
    return [
        fleet.ReportRequest(node_id=node_id, revision=1, full=full),
        fleet.ReportRequest(node_id=node_id, revision=2, delta=delta),
        fleet.ReportRequest(node_id=node_id, revision=2, heartbeat=fleet.Heartbeat()),
    ]


def _ghost(node_id: str) -> types.Node:
    return types.Node(
        node_id=node_id,
        address=NOWHERE,
        tiers=[
            types.TierUsage(tier=types.TIER_SSD, capacity_bytes=2**30, used_bytes=2**20),
            types.TierUsage(tier=types.TIER_DRAM, capacity_bytes=2**28, used_bytes=2**20),
        ],
        kv_capacity_bytes=2**27,
        copies=[_copy(types.TIER_SSD, "file:///nowhere")],
        links=[
            types.LinkObservation(
                from_tier=types.TIER_SSD, to_tier=types.TIER_DRAM, bytes_per_second=1e9
            )
        ],
        init_time=Duration(seconds=1),
        host="ghost",
        connected_at=Timestamp(seconds=1),
        init_observations=[_init_observation()],
        devices=[types.Device(index=0, name="ghost", uuid="GPU-0", total_bytes=2**30)],
    )


def _copy(tier: types.Tier.ValueType, source: str) -> types.CheckpointCopy:
    hold = types.Hold(hold_id="pin/ghost/SSD", expires_at=Timestamp(seconds=2_000_000_000))
    return types.CheckpointCopy(
        digest="ab" * 16,
        tier=tier,
        size_bytes=2**20,
        resident_bytes=2**20,
        sources=[source],
        holds=[hold],
    )


def _init_observation() -> types.InitObservation:
    return types.InitObservation(
        digest="ab" * 16,
        engine="transformers",
        size_bytes=2**20,
        prepare=Duration(nanos=10**8),
        attach=Duration(nanos=10**8),
    )


def _ghostly_instance(node_id: str) -> types.Instance:
    return types.Instance(
        instance_id=f"{node_id}-instance",
        deployment="fuzz-0",
        node_id=node_id,
        state=types.INSTANCE_STATE_READY,
        kv_bytes=2**20,
        digest="ab" * 16,
        started_at=Timestamp(seconds=1_000_000_000),
        worker_pid=1,
        unread_request_ids=["fuzz-request-0"],
        device_index=0,
    )
