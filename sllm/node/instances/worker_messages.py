"""Between what the agent says to a worker and hears of it, and the protocol's messages."""

from dataclasses import dataclass
from pathlib import Path

from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm.checkpoint.format.manifest import Manifest
from sllm.durations import to_seconds
from sllm.embedding.wire import purpose
from sllm.node.device.interface import InPool, Place
from sllm.node.instances.spec import EngineSpec
from sllm.node.worker.messages import ModelDescription


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a worker says once it is ready for its weights."""

    model: ModelDescription
    seconds: float
    """What it took in the worker."""
    warm_up: float | None
    """Of these, the first, for which it used a device for the first time. None: it has none."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What a worker says once its engine runs."""

    attach_seconds: float
    """Mapping the chunks and building the module over them."""
    engine_init_seconds: float
    """Making the KV cache and the scheduler."""
    context_tokens: int
    """What prompt and generation of one request may have together."""


def prepare_request(directory: Path, engine: EngineSpec) -> pb.PrepareRequest:
    """The message that has a worker read a model's small files; see `Worker.prepare`."""
    config = types_pb.EngineConfig(
        engine=engine.engine,
        dtype=engine.dtype or "",
        kv_cache_tokens=engine.kv_cache_tokens,
        max_concurrency=engine.max_concurrency,
        tool_parser=engine.parsers.tool,
        reasoning_parser=engine.parsers.reasoning,
        max_adapters=engine.max_adapters,
    )
    return pb.PrepareRequest(checkpoint_dir=str(directory), engine=config)


def prepared(reply: pb.PrepareResponse) -> Prepared:
    """What a worker has found and done; see `Worker.prepare`."""
    model = ModelDescription(
        architecture=reply.architecture,
        context_tokens=reply.context_tokens,
        kv_bytes_per_token=reply.kv_bytes_per_token,
        dtype=reply.dtype,
        purpose=purpose(reply.purpose),
    )
    warm_up = to_seconds(reply.warm_up) if reply.HasField("warm_up") else None
    return Prepared(model, to_seconds(reply.duration), warm_up)


def attach_request(
    manifest: Manifest, place: Place, kv_bytes: int, ready_made: Path | None = None
) -> pb.AttachRequest:
    """The message that gives a worker its weights; see `Worker.attach`."""
    request = pb.AttachRequest(
        kv_bytes=kv_bytes,
        ready_made_dir=str(ready_made or ""),
        tensors=[
            pb.TensorPlace(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                partition=tensor.partition,
                offset=tensor.offset,
                size_bytes=tensor.size,
            )
            for tensor in manifest.tensors
        ],
    )
    if isinstance(place, InPool):
        request.chunk_bytes = place.chunk_bytes
        request.partitions.extend(pb.PartitionChunks(chunks=chunks) for chunks in place.chunks)
    else:
        request.device_memory.ipc_handle = place.handle
        request.device_memory.size_bytes = place.size_bytes
        request.device_memory.partition_offsets.extend(place.partitions)
    return request


def attached(reply: pb.AttachResponse) -> Attached:
    """How an attachment went; see `Worker.attach`."""
    return Attached(
        attach_seconds=to_seconds(reply.attach),
        engine_init_seconds=to_seconds(reply.engine_init),
        context_tokens=reply.context_tokens,
    )
