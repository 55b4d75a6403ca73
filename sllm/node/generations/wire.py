"""Between what a generation puts out, or why it fails, and the protocol's messages."""

import sys
from array import array
from collections.abc import Sequence

import xxhash
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors
from sllm.durations import to_duration
from sllm.node.instances.adapter_use import AdapterSpec, named
from sllm.node.instances.phases import Phase
from sllm.token_events import extend


def phase_message(phase: Phase) -> pb.Phase:
    """A phase of a receipt."""
    return pb.Phase(
        kind=pb.PhaseKind.ValueType(phase.kind),
        start=to_duration(phase.start),
        duration=to_duration(phase.duration),
        size_bytes=phase.size_bytes,
    )


def adapter_spec(message: inference_pb.AdapterSource) -> AdapterSpec:
    """The adapter that a request is for.

    Raises:
        errors.InvalidArgument: It does not say what it is, or how long it stays.
    """
    if not message.identity:
        raise errors.InvalidArgument("an adapter is named by its identity, which is empty")
    return AdapterSpec(
        deployment=bounds.name(message.deployment, "adapter.deployment"),
        source=message.source,
        dtype=message.dtype or None,
        pack=message.pack,
        identity=bounds.name(message.identity, "adapter.identity"),
        keep_alive=bounds.duration(message.keep_alive, "adapter.keep_alive"),
    )


def served_identity(instance: str, request: inference_pb.GenerateRequest) -> str:
    """Of what a request's tokens are generated with: the instance's model, and the adapter over it.

    Empty while it is not known.
    """
    adapter = named(request.adapter.identity, request.adapter.dtype)
    return f"{instance}+{adapter}" if instance and adapter else instance


def merge_tokens(parts: Sequence[inference_pb.Tokens]) -> inference_pb.Tokens:
    """One message of consecutive ones: what waits together travels together."""
    merged = inference_pb.Tokens()
    if parts:
        merged.CopyFrom(parts[0])
    for part in parts[1:]:
        extend(merged, part)
    return merged


def migration_failure(error: errors.SllmError) -> migration_pb.MigrationFailure:
    """Why a generation stays where it is."""
    return migration_pb.MigrationFailure(
        code=error.code, reason=error.reason, message=error.message
    )


def from_migration_failure(message: migration_pb.MigrationFailure) -> errors.SllmError:
    """The same, as the other node has told it."""
    return errors.make_error(message.code, message.reason, message.message)


def token_digest(prompt: Sequence[int], generated: Sequence[int]) -> bytes:
    """What both ends of a migration must have alike; see MigrationCutover."""
    tokens = array("i", [*prompt, *generated])
    if sys.byteorder == "big":
        tokens.byteswap()
    return xxhash.xxh3_128_digest(tokens.tobytes())
