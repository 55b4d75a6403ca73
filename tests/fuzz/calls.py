"""One call of the fuzz: made from its number, sent as bytes, and its answer judged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceStub
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

from sllm import errors
from tests.fuzz.mutations import mutate_bytes, mutate_fields
from tests.fuzz.protocol import METHODS, Method
from tests.fuzz.valid import VALID, Facts

UNARY_SECONDS: Final = 30.0
"""Within this time a call without a stream has its answer, however busy the machine is."""
MAX_DETAILS: Final = 1_500
"""Characters of an answer's message: what a caller sent is not sent back to him whole."""
_PATIENCE: Final = (0.05, 0.2, 0.2, 1.0)
"""Seconds for which a stream is read, before its caller leaves."""
_MAX_ANSWERS: Final = 200
"""Messages of a stream that are read, before its caller leaves."""
_LOST: Final = "Internal error from Core"
"""grpc.aio's own client, of a call that the server has ended while messages were being sent."""
_TRACES: Final = ("", "00-garbage", "\x20", "00-" + "0" * 32 + "-" + "0" * 16 + "-01")


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent."""

    number: int
    method: Method
    messages: list[bytes]
    patience: float
    """Seconds, for streams of answers."""
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call."""

    code: str
    """Name of the status, or LEFT if the caller left a stream."""
    reason: str = ""
    details: str = ""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the answer."""


def make_call(seed: int, number: int, facts: Facts) -> Call:
    """The call of this number; the same for the same seed and facts."""
    rng = Random(f"{seed}/{number}")
    method = rng.choice(METHODS)
    valid = VALID[method.server][method.key](facts, rng)
    way = rng.random()
    if 0.05 < way < 0.75:
        mutate_fields(rng.choice(valid), rng, facts.names())
    encoded = [message.SerializeToString() for message in valid]
    if way >= 0.75:
        chosen = rng.randrange(len(encoded))
        encoded[chosen] = mutate_bytes(encoded[chosen], rng)
    if 0.70 < way < 0.75:
        other = VALID[method.server][method.key](facts, rng)
        encoded[0] += other[-1].SerializeToString()  # oneofs with two arms
    if method.sends_stream:
        encoded = _shuffled(encoded, rng)
    metadata = (("traceparent", rng.choice(_TRACES)),) if rng.random() < 0.05 else ()
    return Call(number, method, encoded, rng.choice(_PATIENCE), metadata)


def _shuffled(encoded: list[bytes], rng: Random) -> list[bytes]:
    match rng.randrange(8):
        case 0:
            return rng.sample(encoded, len(encoded))
        case 1:
            return encoded[: rng.randrange(len(encoded) + 1)]
        case 2:
            return encoded * 3
    return encoded


async def send(channel: grpc.aio.Channel, call: Call) -> Outcome:
    """Sends a call, and judges its answer."""
    try:
        if call.method.sends_stream or call.method.gives_stream:
            return await _send_stream(channel, call)
        return await _send_unary(channel, call)
    except grpc.aio.AioRpcError as error:
        return _judge(error, call)


async def _send_unary(channel: Any, call: Call) -> Outcome:
    await channel.unary_unary(call.method.path)(
        call.messages[0], timeout=UNARY_SECONDS, metadata=call.metadata
    )
    return Outcome("OK")


async def _send_stream(channel: grpc.aio.Channel, call: Call) -> Outcome:
    """Reads a stream to its end, or for as long as its caller has patience."""
    stream: Any = _open(channel, call)
    try:
        async with asyncio.timeout(call.patience):
            for _ in range(_MAX_ANSWERS):
                if await stream.read() is grpc.aio.EOF:
                    return await _ended(stream, call)
    except TimeoutError:
        pass
    finally:
        stream.cancel()
    return Outcome("LEFT")


def _open(channel: Any, call: Call) -> Any:
    if call.method.sends_stream:
        return channel.stream_stream(call.method.path)(_each(call.messages), metadata=call.metadata)
    return channel.unary_stream(call.method.path)(call.messages[0], metadata=call.metadata)


async def _each(messages: list[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def _ended(stream: grpc.aio.Call, call: Call) -> Outcome:
    code = await stream.code()
    if code is grpc.StatusCode.OK:
        return Outcome("OK")
    details = await stream.details()
    first, last = await stream.initial_metadata(), await stream.trailing_metadata()
    return _judge(grpc.aio.AioRpcError(code, first, last, details), call)


async def take_back(channel: grpc.aio.Channel, call: Call, facts: Facts) -> None:
    """Undoes at once what would keep later calls from meeting a cluster that works."""
    match call.method.key:
        case "ClusterService.DrainNode":
            undrain = cluster_pb.UndrainNodeRequest(node_id=facts.node_id)
            with suppress(grpc.aio.AioRpcError):  # a report in its name may have displaced the node
                await ClusterServiceStub(channel).UndrainNode(undrain)
        case "DeploymentService.Deploy" if name := _named(deployment_pb.DeployRequest, call):
            with suppress(grpc.aio.AioRpcError):  # it may not have been deployed
                delete = deployment_pb.DeleteDeploymentRequest(name=name)
                await DeploymentServiceStub(channel).DeleteDeployment(delete)
        case "NodeService.StartInstance" if name := _named(node_pb.StartInstanceRequest, call):
            await NodeServiceStub(channel).StopInstance(
                node_pb.StopInstanceRequest(instance_id=name)
            )


def _named(kind: type[Message], call: Call) -> str:
    """What a call has created, if it could be read."""
    try:
        message: Any = kind.FromString(call.messages[0])
    except DecodeError:
        return ""
    return str(getattr(message, "name", "") or getattr(message, "instance_id", ""))


# --- what answers may be ----------------------------------------------------------------------

_OURS: Final = "serverlessllm."


def _judge(error: grpc.aio.AioRpcError, call: Call) -> Outcome:
    code, details = error.code().name, error.details() or ""
    if details == _LOST:
        return Outcome("LOST")
    reason = _reason(error)
    faults = []
    if code in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED"):
        faults.append(f"the answer is {code}")
    elif not reason and call.method.service.startswith(_OURS):
        faults.append("the answer has no reason")
    if len(details) > MAX_DETAILS:
        faults.append(f"the answer's message has {len(details)} characters")
    return Outcome(code, reason, details, faults)


def _reason(error: grpc.aio.AioRpcError) -> str:
    try:
        status = rpc_status.from_call(error)
    except ValueError as mismatch:
        return f"unreadable: {mismatch}"
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info) and info.domain == errors.DOMAIN:
            return str(info.reason)
    return ""
