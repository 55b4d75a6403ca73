"""What prompts begin with, from requests, and as nodes tell of it."""

import itertools
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.chat.wire import image_messages
from sllm.prompt_prefixes import Keeper, prefixes_of
from sllm.prompt_prefixes_wire import keeper_message

_MOST_MESSAGES: Final = 16_384
"""Of a conversation that are named, which hold the event loop up meanwhile; few contexts have room
for more."""
_TOGETHER: Final = 256
"""Messages whose bytes are looked at in one piece: each by itself takes several times as long."""


def settle_prefixes(samples: Sequence[pb.GenerateRequest], identity: str) -> None:
    """Names what a request's prompt begins with; one with images is told by more than its bytes.

    Once for all samples: a long prompt takes tens of milliseconds.

    Args:
        samples: of one prompt.
        identity: of what its deployment serves. What others have sent nobody learns of.
    """
    named = _named(samples[0], identity)
    for request in samples:
        request.prefixes.CopyFrom(named)


def _named(request: pb.GenerateRequest, identity: str) -> pb.PromptPrefixes:
    kind = request.WhichOneof("prompt")
    if kind is None or request.images or image_messages(request.messages):
        return pb.PromptPrefixes()
    whose = (request.deployment, identity, request.adapter.identity, kind)
    found = prefixes_of(" ".join(whose), _parts(request))
    beyond = len(request.messages.messages) > _MOST_MESSAGES
    size = request.messages.ByteSize() if beyond else found.size_bytes
    return pb.PromptPrefixes(names=found.names, size_bytes=size)


def set_keeper(request: pb.GenerateRequest, keeper: Keeper | None) -> None:
    """Says which other node keeps more of a request's prompt than the one that it is given to."""
    request.prefixes.ClearField("keeper")
    if keeper:
        request.prefixes.keeper.CopyFrom(keeper_message(keeper))


def _parts(request: pb.GenerateRequest) -> Iterator[bytes]:
    """A prompt's bytes: those of a conversation begin those of one that goes on with it."""
    match request.WhichOneof("prompt"):
        case "text":
            yield request.text.encode()
        case "token_ids":
            yield array("i", request.token_ids.ids).tobytes()
        case "messages":
            yield request.messages.template_arguments.encode()
            for tool in request.messages.tools:
                yield tool.SerializeToString(deterministic=True)
            named = itertools.islice(request.messages.messages, _MOST_MESSAGES)
            while some := list(itertools.islice(named, _TOGETHER)):
                yield b"".join(one.SerializeToString(deterministic=True) for one in some)


def kept(message: fleet_pb.KeptPrefixes) -> dict[int, float]:
    """What a node keeps: by name, the seconds that a prompt which begins so is computed sooner.

    What makes no sense is left out: a node whose whole report were refused for that would be lost.
    """
    told = zip(message.names, message.saved_seconds, strict=False)
    return {name: saved for name, saved in told if 0 <= saved < math.inf}
