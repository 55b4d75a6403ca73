"""Between what the agent says to a worker and hears of it, and the protocol's messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serverlessllm.v1 import layers_pb2 as layers_pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest import Manifest
from sllm.durations import to_seconds
from sllm.embedding.wire import purpose
from sllm.node.device.interface import InPool, OnDisk, Place
from sllm.node.device.kv_shares import CacheUse
from sllm.node.instances.spec import EngineSpec
from sllm.node.tiers.first_use import FirstUse
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
    read_seconds: float = 0.0
    """Of `attach_seconds`, the first, for what the worker has read from disk by itself."""
    read_bytes: int = 0
    resizes_cache: bool = False
    """Whether its KV cache can be made larger and smaller."""


def prepare_request(directory: Path, engine: EngineSpec) -> pb.PrepareRequest:
    """The message that has a worker read a model's small files; see `Worker.prepare`."""
    return pb.PrepareRequest(checkpoint_dir=str(directory), engine=engine_config(engine))


def engine_config(engine: EngineSpec) -> types_pb.EngineConfig:
    """How a model is to be run, for whoever runs it over weights that are given."""
    return types_pb.EngineConfig(
        engine=engine.engine,
        dtype=engine.dtype or "",
        kv_cache_tokens=engine.kv_cache_tokens,
        max_concurrency=engine.max_concurrency,
        tool_parser=engine.parsers.tool,
        reasoning_parser=engine.parsers.reasoning,
        tensor_parallel=engine.tensor_parallel,
        max_adapters=engine.max_adapters,
        expert_memory_bytes=engine.expert_bytes,
    )


def prepared(reply: pb.PrepareResponse) -> Prepared:
    """What a worker has found and done; see `Worker.prepare`."""
    model = ModelDescription(
        architecture=reply.architecture,
        context_tokens=reply.context_tokens,
        kv_bytes_per_token=reply.kv_bytes_per_token,
        dtype=reply.dtype,
        purpose=purpose(reply.purpose),
        image_bytes=reply.image_bytes,
    )
    warm_up = to_seconds(reply.warm_up) if reply.HasField("warm_up") else None
    return Prepared(model, to_seconds(reply.duration), warm_up)


def attach_request(
    manifest: Manifest,
    place: Place,
    kv_bytes: int,
    ready_made: Path | None = None,
    awaited: Sequence[int] = (),
    borrowed: Sequence[range] = (),
    more_kv_bytes: int = 0,
    *,
    tell_first_use: bool = False,
) -> pb.AttachRequest:
    """The message that gives a worker its weights; see `Worker.attach`."""
    request = pb.AttachRequest(
        kv_bytes=kv_bytes,
        more_kv_bytes=more_kv_bytes,
        ready_made_dir=str(ready_made or ""),
        awaited_chunks=awaited,
        borrowed=map(layer_range, borrowed),
        tell_first_use=tell_first_use,
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
    elif isinstance(place, OnDisk):
        request.on_disk.CopyFrom(_on_disk(manifest, place))
    else:
        request.device_memory.ipc_handle = place.handle
        request.device_memory.size_bytes = place.size_bytes
        request.device_memory.partition_offsets.extend(place.partitions)
    return request


def layer_range(layers: range) -> layers_pb.LayerRange:
    """Layers that follow one another."""
    return layers_pb.LayerRange(first=layers.start, count=len(layers))


def _on_disk(manifest: Manifest, place: OnDisk) -> pb.OnDisk:
    return pb.OnDisk(
        directory=str(place.directory),
        expert_memory_bytes=place.expert_bytes,
        partitions=[
            pb.PartitionFile(
                name=entry.file,
                size_bytes=entry.size,
                chunk_bytes=entry.chunk_size,
                digests=entry.digests,
            )
            for entry in manifest.partitions
        ],
    )


def form_message(form: WeightForm) -> types_pb.WeightForm:
    """What weights were made ready for."""
    return types_pb.WeightForm(
        name=form.name,
        engine=form.engine,
        ranks=form.ranks,
        versions=form.versions,
        kernels=form.kernels,
        dtype=form.dtype,
        made_of=form.made_of,
    )


def attached(reply: pb.AttachResponse) -> Attached:
    """How an attachment went; see `Worker.attach`."""
    return Attached(
        attach_seconds=to_seconds(reply.attach),
        engine_init_seconds=to_seconds(reply.engine_init),
        context_tokens=reply.context_tokens,
        read_seconds=to_seconds(reply.read),
        read_bytes=reply.read_bytes,
        resizes_cache=reply.resizes_cache,
    )


def cache_use(reply: pb.ResizeCacheResponse) -> CacheUse:
    """What a worker's cache has and needs; see `Worker.resize_cache`."""
    return CacheUse(reply.share_bytes, reply.least_bytes, reply.used_bytes)


def first_use(message: pb.FirstUse) -> FirstUse:
    """In which order a worker has seen tensors used; see `Worker.attach`."""
    return FirstUse(tuple(message.tensors), message.at_once)
