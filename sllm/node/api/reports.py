"""What the node tells of itself, in the protocol's messages."""

import socket
from collections.abc import Mapping, Sequence

from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.durations import to_duration
from sllm.embedding.wire import purpose_message
from sllm.node.agent import Agent
from sllm.node.api import wire
from sllm.node.device.interface import DeviceInfo
from sllm.node.device.kv_shares import CacheSizes
from sllm.node.generations.wire import phase_message
from sllm.node.instances.init_times import InitKey, InitTime, InitTimes
from sllm.node.instances.instance import Instance
from sllm.node.instances.memory import MAX_INSTANCES, NodeMemory
from sllm.node.instances.running import Running
from sllm.node.instances.worker_messages import form_message
from sllm.node.store.holds import Hold
from sllm.node.tiers.types import Copy, Link, TierUsage


def instance_message(instance: Instance, node_id: str) -> pb.Instance:
    """An instance as it is now."""
    message = pb.Instance(
        instance_id=instance.spec.instance_id,
        deployment=instance.spec.deployment,
        node_id=node_id,
        state=pb.InstanceState.ValueType(instance.state),
        running_requests=instance.running_requests,
        kv_bytes=instance.spec.kv_bytes,
        digest=instance.running.digest if instance.running else "",
        worker_pid=instance.worker_pid,
        unread_request_ids=sorted(instance.unread),
        device_index=instance.device,
        identity=instance.identity,
        own_bytes=instance.memory.bytes,
        engine=instance.spec.engine.engine,
        private_bytes=instance.spec.private_bytes,
        config=wire.engine_message(instance.spec.engine),
        adapters=[
            pb.LoadedAdapter(deployment=one.deployment, identity=one.identity, digest=digest)
            for one, digest in (instance.adapters.there if instance.adapters else ())
        ],
        ready_made=instance.over_ready,
        kv_share=_kv_share(instance.kv_cache) if instance.kv_cache else None,
    )
    message.started_at.FromDatetime(instance.started_at)
    return message


def _kv_share(sizes: CacheSizes) -> pb.KvShare:
    return pb.KvShare(size_bytes=sizes.share, used_bytes=sizes.used)


def ready_message(instance: Instance, node_id: str) -> node_pb.InstanceReady:
    """The last message of a start."""
    running = instance.running
    return node_pb.InstanceReady(
        instance=instance_message(instance, node_id),
        phases=[phase_message(phase) for phase in instance.timeline.phases],
        from_tier=pb.Tier.ValueType(running.from_tier if running else 0),
        model=_running_model(running) if running else None,
        weights_arriving=instance.arriving is not None,
    )


def _running_model(running: Running) -> pb.ModelInfo:
    return pb.ModelInfo(
        architecture=running.model.architecture,
        size_bytes=running.tensor_bytes,
        context_tokens=running.model.context_tokens,
        kv_bytes_per_token=running.model.kv_bytes_per_token,
        digest=running.digest,
        identity=running.identity,
        purpose=purpose_message(running.model.purpose),
    )


def copy_message(
    copy: Copy, holds: Sequence[Hold] = (), private_bytes: int | None = None
) -> pb.CheckpointCopy:
    """A checkpoint on a tier, what holds it there, and what instances over it were seen to copy."""
    return pb.CheckpointCopy(
        digest=copy.digest,
        tier=pb.Tier.ValueType(copy.tier),
        size_bytes=copy.size_bytes,
        resident_bytes=copy.resident_bytes,
        sources=copy.sources,
        leased=copy.leased,
        holds=[_hold(hold) for hold in holds],
        made_of=copy.made_of,
        made_for=copy.made_for,
        form=form_message(copy.form) if copy.form else None,
        private_bytes=private_bytes,
    )


def _hold(hold: Hold) -> pb.Hold:
    message = pb.Hold(hold_id=hold.hold_id)
    if hold.expires_at is not None:
        message.expires_at.FromNanoseconds(round(hold.expires_at * 1e9))
    return message


def node_message(agent: Agent, node_id: str, address: str) -> pb.Node:
    """The node without its copies."""
    instances, books = agent.instances, agent.instances.own_books
    return pb.Node(
        node_id=node_id,
        address=address,
        host=socket.gethostname(),
        tiers=[_usage(usage) for usage in agent.contents.usage()],
        links=[_link(link) for link in agent.contents.links()],
        kv_capacity_bytes=agent.devices.kv_capacity_bytes,
        kv_used_bytes=books.kv_used_bytes,
        leaving=agent.leaving,
        devices=[_device(device) for device in agent.devices.infos()],
        memory=_memory(books.memory),
        engines=[pb.NodeEngine(name=one.name, ready=one.ready) for one in agent.zygotes.states],
        init_time=None if (mean := instances.init_times.mean) is None else to_duration(mean),
        max_tensor_parallel=agent.devices.max_together,
        zone=agent.config.zone,
        unmade_forms=[
            pb.UnmadeForm(digest=digest, made_for=made_for, problem=problem)
            for (digest, made_for), problem in instances.unmade_forms.items()
        ],
    )


def init_messages(observed: InitTimes) -> dict[InitKey, pb.InitObservation]:
    """What starts took, by checkpoint and engine."""
    return {key: _init_message(key, time) for key, time in observed.times.items()}


def kept_message(
    before: Mapping[int, float], now: Mapping[int, float]
) -> fleet_pb.KeptPrefixes | None:
    """What is kept of prompts, by their names, where that has changed. None: it has not."""
    changed = {name: saved for name, saved in now.items() if before.get(name) != saved}
    gone = before.keys() - now.keys()
    if not (changed or gone):
        return None
    saved = changed.values()
    return fleet_pb.KeptPrefixes(names=changed, saved_seconds=saved, gone=sorted(gone))


def _init_message(key: InitKey, time: InitTime) -> pb.InitObservation:
    return pb.InitObservation(
        digest=key.digest,
        engine=key.engine,
        ready_made=key.ready_made,
        size_bytes=time.size_bytes,
        prepare=to_duration(time.prepare),
        attach=to_duration(time.attach),
    )


def _usage(usage: TierUsage) -> pb.TierUsage:
    return pb.TierUsage(
        tier=pb.Tier.ValueType(usage.tier),
        capacity_bytes=usage.capacity_bytes,
        used_bytes=usage.used_bytes,
        problem=usage.problem,
    )


def _device(device: DeviceInfo) -> pb.Device:
    return pb.Device(
        index=device.index,
        name=device.name,
        uuid=device.uuid,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        weights_capacity_bytes=device.weights_capacity_bytes,
        weights_used_bytes=device.weights_used_bytes,
        kv_capacity_bytes=device.kv_capacity_bytes,
        kv_used_bytes=device.kv_used_bytes,
        reserved_bytes=device.reserved_bytes,
        idle_bytes=device.idle_bytes,
    )


def _memory(memory: NodeMemory) -> pb.NodeMemory:
    return pb.NodeMemory(
        total_bytes=memory.total_bytes,
        capacity_bytes=memory.capacity_bytes,
        used_bytes=memory.used_bytes,
        instance_bytes=memory.instance_bytes,
        max_instances=MAX_INSTANCES,
    )


def _link(link: Link) -> pb.LinkObservation:
    return pb.LinkObservation(
        from_tier=pb.Tier.ValueType(link.from_tier),
        to_tier=pb.Tier.ValueType(link.to_tier),
        bytes_per_second=link.bytes_per_second,
        queued_bytes=link.queued_bytes,
        in_flight_bytes=link.in_flight_bytes,
    )
