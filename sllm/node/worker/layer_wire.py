"""Between passes through layers that are computed elsewhere, and the protocol's messages."""

from math import prod
from typing import Any

import torch
from serverlessllm.v1 import layers_pb2 as pb

from sllm.errors import InvalidArgument
from sllm.node.worker.layers.passes import Answer, LayerCache, Pass


def layers(message: pb.LayerRange) -> range:
    """Which layers, from 0."""
    return range(message.first, message.first + message.count)


def pass_message(one: Pass) -> pb.LayerPass:
    """A pass, for whoever computes it."""
    return pb.LayerPass(
        number=one.number,
        hidden=_bytes(one.hidden),
        positions=one.positions.flatten().tolist(),
        query_ends=one.query_ends.tolist(),
        key_ends=one.key_ends.tolist(),
        write=_bytes(one.write),
        read=_bytes(one.read),
    )


def one_pass(message: pb.LayerPass, dtype: torch.dtype) -> Pass:
    """A pass to compute.

    Raises:
        InvalidArgument: It does not fit together.
    """
    tokens, hidden = len(message.positions), _tensor(message.hidden, dtype)
    write = _tensor(message.write, torch.int64)
    ends = (message.query_ends, message.key_ends)
    fits = tokens and hidden.numel() % tokens == 0 and len(write) == tokens
    if not fits or len(ends[0]) != len(ends[1]) or list(ends[0][-1:]) != [tokens]:
        raise InvalidArgument("the numbers of a pass through layers do not fit together")
    queries, keys = (torch.tensor(list(one), dtype=torch.int32) for one in ends)
    return Pass(
        message.number,
        hidden.view(1, tokens, -1),
        torch.tensor([list(message.positions)], dtype=torch.int32),
        queries,
        keys,
        write,
        _tensor(message.read, torch.int64),
    )


def answer_message(answer: Answer) -> pb.LayerAnswer:
    """What has come of a pass, for whoever has sent it."""
    return pb.LayerAnswer(
        number=answer.number,
        caches=map(_cache_message, answer.caches),
        hidden=None if answer.hidden is None else _bytes(answer.hidden),
    )


def answer(message: pb.LayerAnswer, dtype: torch.dtype) -> Answer:
    """What has come of a pass.

    Raises:
        InvalidArgument: It does not fit together.
    """
    caches = tuple(_cache(one, dtype) for one in message.caches)
    hidden = _tensor(message.hidden, dtype) if message.HasField("hidden") else None
    return Answer(message.number, caches, hidden)


def _cache_message(cache: LayerCache) -> pb.LayerCache:
    keys, values = _bytes(cache.keys), _bytes(cache.values)
    return pb.LayerCache(layer=cache.layer, keys=keys, values=values, shape=cache.keys.shape[1:])


def _cache(message: pb.LayerCache, dtype: torch.dtype) -> LayerCache:
    keys, values = (_tensor(one, dtype) for one in (message.keys, message.values))
    shape = tuple(message.shape)
    if len(shape) != 3 or min(shape) < 1 or not keys.numel() == values.numel() == prod(shape):
        raise InvalidArgument(f"keys and values of layer {message.layer} are not of shape {shape}")
    return LayerCache(message.layer, keys.view(1, *shape), values.view(1, *shape))


def _bytes(tensor: torch.Tensor) -> bytes:
    flat: Any = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    found: bytes = flat.tobytes()
    return found


def _tensor(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    if len(data) % dtype.itemsize:
        raise InvalidArgument(f"{len(data)} bytes are no whole numbers of {dtype.itemsize} each")
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)
