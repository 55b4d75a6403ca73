"""Messages as they come and go: protobuf is passed on as it is, JSON is made of it and into it."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from connectrpc.codec import Codec
from google.protobuf import json_format

from sllm import errors

_INLINE_BYTES: Final = 32 * 1024
"""Up to this size JSON is read and written within the event loop."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message of a caller, not yet read."""

    codec: str
    data: bytes

    async def to_wire(self, message: type[Any]) -> bytes:
        """The same in protobuf.

        Raises:
            errors.InvalidArgument: It is JSON, and no such message.
        """
        if self.codec != JSON:
            return self.data
        return await _beside(_from_json, self.data, message)


async def from_wire(codec: str, data: bytes, message: type[Any]) -> bytes:
    """A message of the control plane, as its caller wants it."""
    return data if codec != JSON else await _beside(_to_json, data, message)


class PassedOn(Codec[bytes, Encoded]):
    """Gives and takes messages as bytes; whoever forwards them knows what they are."""

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        """As in content types."""
        return self._name

    def encode(self, message: bytes) -> bytes:
        """Nothing is left to do."""
        return message

    def decode(self, data: bytes | bytearray, message_class: type[Encoded]) -> Encoded:
        """Keeps how it is encoded, too."""
        return Encoded(self._name, bytes(data))


JSON: Final = "json"
CODECS: Final = (PassedOn("proto"), PassedOn(JSON))


async def _beside(convert: Any, data: bytes, message: type[Any]) -> bytes:
    """Converts what is large in a thread: other callers' streams go on meanwhile."""
    if len(data) <= _INLINE_BYTES:
        return bytes(convert(data, message))
    return bytes(await asyncio.to_thread(convert, data, message))


def _from_json(data: bytes, message: type[Any]) -> bytes:
    name = message.DESCRIPTOR.full_name
    if data and data.lstrip()[:1] != b"{":  # the library takes an empty list for a message
        raise errors.InvalidArgument(f"the request is no {name} in JSON, which is an object")
    try:
        parsed = json_format.Parse(data or b"{}", message())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidArgument(f"the request is no {name} in JSON: {error}") from error
    return bytes(parsed.SerializeToString())


def _to_json(data: bytes, message: type[Any]) -> bytes:
    text = json_format.MessageToJson(message.FromString(data), indent=None, ensure_ascii=False)
    return text.encode()
