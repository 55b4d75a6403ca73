"""Messages made wrong, field by field or byte by byte. All follows from the `Random` given."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_LIMITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS: Final = (math.nan, math.inf, -math.inf, -0.0, 0.0, -1.0, 1e308, 5e-324, 0.5, 2.0)
_TIMES: Final = (0, 1, -1, 3600, 10**9, 315_576_000_000, -315_576_000_000, 253_402_300_800)
"""Seconds at the bounds of Duration and Timestamp, and ordinary ones."""
_STRINGS: Final = (
    "",
    " ",
    "\0",
    "\n",
    "a" * 64,
    "a" * 300,
    "a" * 9_000,
    "ä" * 5_000,
    "🦙" * 100,
    "\u202eabc",
    "../../etc/passwd",
    "/" + "x" * 300 + "/model",
    "/dev/zero",
    "/proc/self/mem",
    "file://",
    "file:///",
    "file:///dev/null",
    "file://%00/%ff",
    "file://[",
    "http://127.0.0.1:1/model",
    "127.0.0.1:1",
    "unix:/nowhere",
    "dns:///",
    "%s%n{}",
    "transformers",
    "float16",
    "'; DROP TABLE deployments; --",
)
_HUGE: Final = 2_000
"""Elements of a repeated field that is made huge."""


def mutate_fields(message: Message, rng: Random, words: Sequence[str]) -> None:
    """Makes one to three fields of `message`, however deep, into something that nobody expects.

    Args:
        message: changed in place.
        rng: what is drawn from.
        words: strings that mean something to the server, for fields that want another one.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _mutate_somewhere(message, rng, words)


def mutate_bytes(encoded: bytes, rng: Random) -> bytes:
    """`encoded` damaged: what comes of it may be no message at all."""
    return rng.choice(_DAMAGES)(encoded, rng)


# --- field by field ---------------------------------------------------------------------------


def _mutate_somewhere(message: Message, rng: Random, words: Sequence[str]) -> None:
    fields: Sequence[Any] = message.DESCRIPTOR.fields
    if not fields:
        return
    field = rng.choice(fields)
    if field.is_repeated:
        _mutate_repeated(message, field, rng, words)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        _mutate_child(message, field, rng, words)
    else:
        setattr(message, field.name, _scalar(field, rng, words))


def _mutate_child(
    message: Message, field: FieldDescriptor, rng: Random, words: Sequence[str]
) -> None:
    child: Message = getattr(message, field.name)
    match rng.randrange(6):
        case 0:
            message.ClearField(field.name)
        case 1:
            child.Clear()
            child.SetInParent()
        case _:
            child.SetInParent()
            _mutate_somewhere(child, rng, words)


def _mutate_repeated(
    message: Message, field: FieldDescriptor, rng: Random, words: Sequence[str]
) -> None:
    values = getattr(message, field.name)
    choice = rng.randrange(5)
    if choice == 0:
        message.ClearField(field.name)
    elif field.message_type and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        values[_scalar(key, rng, words)] = _scalar(value, rng, words)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        _mutate_messages(values, choice, rng, words)
    else:
        count = _HUGE if choice == 1 else 1
        values.extend([_scalar(field, rng, words)] * count)


def _mutate_messages(values: Any, choice: int, rng: Random, words: Sequence[str]) -> None:
    if choice == 1 and values:
        values.extend([values[0]] * _HUGE)
    elif choice == 2 or not values:
        _mutate_somewhere(values.add(), rng, words)
    else:
        _mutate_somewhere(rng.choice(values), rng, words)


def _scalar(field: FieldDescriptor, rng: Random, words: Sequence[str]) -> Any:
    kind = field.cpp_type
    if kind in _LIMITS:
        return _integer(field, rng)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.enum_type:
        return rng.choice((*range(len(field.enum_type.values) + 1), 99, -1, 2**31 - 1, -(2**31)))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 16, 17, 5_000)))
    return _string(rng, words)


def _integer(field: FieldDescriptor, rng: Random) -> int:
    least, most = _LIMITS[field.cpp_type]
    of_time = field.full_name.startswith("google.protobuf.")
    ordinary = _TIMES if of_time else (0, 1, 2, 3, 10, 1_000, 100_000, -1)
    value = rng.choice((*ordinary, least, most, least + 1, most - 1, rng.randint(least, most)))
    return min(max(value, least), most)


def _string(rng: Random, words: Sequence[str]) -> str:
    if rng.random() < 0.3 and words:
        return rng.choice(words)
    if rng.random() < 0.02:
        return "z" * 1_000_000
    return rng.choice(_STRINGS)


# --- byte by byte -----------------------------------------------------------------------------


def _flip(encoded: bytes, rng: Random) -> bytes:
    damaged = bytearray(encoded or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(encoded: bytes, rng: Random) -> bytes:
    return encoded[: rng.randrange(len(encoded) + 1)]


def _insert(encoded: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(encoded) + 1)
    return encoded[:place] + rng.randbytes(rng.choice((1, 2, 5, 200))) + encoded[place:]


def _noise(encoded: bytes, rng: Random) -> bytes:
    return rng.randbytes(rng.choice((1, 2, 3, 8, 64, 4_000)))


def _no_utf8(encoded: bytes, rng: Random) -> bytes:
    """Strings whose bytes are no UTF-8, in fields of low numbers."""
    return encoded + bytes([rng.randrange(1, 8) << 3 | 2, 2, 0xFF, 0xFE])


def _nest(encoded: bytes, rng: Random) -> bytes:
    """Groups that are opened again and again, and never closed."""
    return encoded + bytes([rng.randrange(1, 8) << 3 | 3]) * rng.choice((50, 5_000))


def _twice(encoded: bytes, rng: Random) -> bytes:
    """Every field once more: singular ones are repeated, and merged."""
    return encoded + encoded


def _unknown_field(encoded: bytes, rng: Random) -> bytes:
    return encoded + b"\xfa\x3f\x03abc"


def _empty(encoded: bytes, rng: Random) -> bytes:
    return b""


_DAMAGES: Final[tuple[Callable[[bytes, Random], bytes], ...]] = (
    _flip,
    _flip,
    _truncate,
    _insert,
    _noise,
    _no_utf8,
    _nest,
    _twice,
    _unknown_field,
    _empty,
)
