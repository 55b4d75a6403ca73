"""The headers that the safetensors library takes are those that are taken here."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from sllm.checkpoint.format.dtypes import BITS
from sllm.checkpoint.format.safetensors_header import read_header
from sllm.errors import CheckpointCorrupt
from tests.properties import examples

HEADERS: dict[str, bytes] = {
    "nothing": b"{}",
    "metadata alone": b'{"__metadata__":{"format":"pt"}}',
    "metadata that is null": b'{"__metadata__":null}',
    "metadata with a number": b'{"__metadata__":{"format":1}}',
    "metadata that is a list": b'{"__metadata__":["pt"]}',
    "metadata that is a text": b'{"__metadata__":"pt"}',
    "metadata of metadata": b'{"__metadata__":{"a":{"b":"c"}}}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-16 without a mark": "{}".encode("utf-16-le"),
    "UTF-32": "{}".encode("utf-32"),
    "Latin-1": b'{"__metadata__":{"\xe4":"a"}}',
    "half of a surrogate pair": b'{"__metadata__":{"a":"\\ud800"}}',
    "the other half": b'{"__metadata__":{"a":"\\udc00x"}}',
    "a surrogate pair": b'{"__metadata__":{"a":"\\ud83d\\ude00"}}',
    "an escaped backslash before a u": b'{"__metadata__":{"a":"\\\\ud800"}}',
    "spaces around it": b" \n\t{} \r\n ",
    "a comma too many": b"{},",
    "a null byte": b"{}\0",
    "a control character in a text": b'{"__metadata__":{"a":"\x01"}}',
    "an array": b"[]",
    "an object of numbers": b'{"a":1}',
    "an unknown field": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":[1.5,null]}}',
    "an unknown field that is NaN": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":NaN}}'
    ),
    "an unknown field beyond floats": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1e999}}'
    ),
    "an unknown field of many digits": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":' + b"9" * 300 + b"}}"
    ),
    "an unknown field of very many digits": (
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":' + b"9" * 5000 + b"}}"
    ),
    "a shape of a float": b'{"a":{"dtype":"U8","shape":[0.0],"data_offsets":[0,0]}}',
    "a shape of a power": b'{"a":{"dtype":"U8","shape":[0e0],"data_offsets":[0,0]}}',
    "a shape of minus zero": b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}',
    "a shape of true": b'{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
    "a shape that is a text": b'{"a":{"dtype":"U8","shape":"","data_offsets":[0,1]}}',
    "a shape that is null": b'{"a":{"dtype":"U8","shape":null,"data_offsets":[0,1]}}',
    "a shape that is an object": b'{"a":{"dtype":"U8","shape":{},"data_offsets":[0,1]}}',
    "a dtype that is a list": b'{"a":{"dtype":["U8"],"shape":[0],"data_offsets":[0,0]}}',
    "a dtype that is an object of two": (
        b'{"a":{"dtype":{"U8":null,"I8":null},"shape":[0],"data_offsets":[0,0]}}'
    ),
    "three offsets": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}}',
    "offsets in an object": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":{"0":0,"1":0}}}',
    "a tensor that is a text": b'{"a":"U8"}',
    "a tensor that is empty": b'{"a":[]}',
    "the largest number": b'{"a":{"dtype":"U8","shape":[0,18446744073709551615],'
    b'"data_offsets":[0,0]}}',
    "one more": b'{"a":{"dtype":"U8","shape":[0,18446744073709551616],"data_offsets":[0,0]}}',
    "a product that overflows": b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],'
    b'"data_offsets":[0,0]}}',
    "bits that overflow": b'{"a":{"dtype":"F64","shape":[288230376151711744],'
    b'"data_offsets":[0,2305843009213693952]}}',
    "offsets that overflow": b'{"a":{"dtype":"U8","shape":[1],'
    b'"data_offsets":[18446744073709551615,18446744073709551616]}}',
}
HEADERS.update(
    {
        f"{depth} levels": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":%s%s}}'
        % (b"[" * depth, b"]" * depth)
        for depth in (1, 124, 125, 126, 127, 500, 100_000)
    }
)


def test_of_every_odd_header_both_say_the_same(tmp_path: Path) -> None:
    differ = [
        name
        for name, header in HEADERS.items()
        if accepted_here(tmp_path, file_of(header)) != accepted_there(file_of(header))
    ]
    assert not differ


LAXER: dict[str, bytes] = {
    "a tensor twice": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    b'"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
    "metadata twice within": b'{"__metadata__":{"a":"1","a":"2"}}',
    "an unknown field twice": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1,"x":2}}',
    "a tensor as an array": b'{"a":["U8",[0],[0,0]]}',
    "a dtype as an object": b'{"a":{"dtype":{"U8":null},"shape":[0],"data_offsets":[0,0]}}',
}
"""What the library takes, and the format does not allow: two readers would read two things."""


@pytest.mark.parametrize("header", LAXER.values(), ids=LAXER)
def test_what_is_ambiguous_is_refused(tmp_path: Path, header: bytes) -> None:
    assert accepted_there(file_of(header))
    assert not accepted_here(tmp_path, file_of(header))


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 20),
        st.integers(2**63 - 2, 2**64 + 2),
        st.floats(),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
DTYPES = st.sampled_from([*BITS, "F3", "f32"])


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, int]:
    """A header, mostly right, and how many bytes of tensors follow."""
    found: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.text(max_size=4), max_size=4, unique=True)):
        dtype, shape = draw(DTYPES), draw(st.lists(st.integers(0, 3), max_size=3))
        size = BITS.get(dtype, 8)
        for factor in shape:
            size *= factor
        begin, end = end, end + size // 8
        entry: dict[str, Any] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        if draw(st.integers(0, 5)) == 0:
            entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(JUNK)
        found[name] = entry
    if draw(st.booleans()):
        found["__metadata__"] = draw(
            st.one_of(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), JUNK)
        )
    names = draw(st.permutations(list(found)))
    text = json.dumps({n: found[n] for n in names}, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass"), end


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A file of such a header, in which some bytes may be others, or be missing."""
    header, size = draw(headers())
    content = bytearray(file_of(header) + bytes(size))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(content) - 1))
        content[place : place + draw(st.integers(0, 2))] = draw(
            st.one_of(st.binary(max_size=2), st.sampled_from(list(b'{}[],:"0-\\')).map(_byte))
        )
    return bytes(content)


def _byte(value: int) -> bytes:
    return bytes([value])


@examples(400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files())
@example(content=b"")
@example(content=b"\xff" * 8)
def test_of_any_file_both_say_the_same(tmp_path: Path, content: bytes) -> None:
    if accepted_here(tmp_path, content) != accepted_there(content):
        assert is_ambiguous(content), content


def is_ambiguous(content: bytes) -> bool:
    """Whether it is one of those that only the library takes."""
    repeated = []

    def watch(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    length = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + length], object_pairs_hook=watch)
    tensors.pop("__metadata__", None)
    odd = [t for t in tensors.values() if isinstance(t, list) or isinstance(t["dtype"], dict)]
    return any(repeated) or bool(odd)


def file_of(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def accepted_here(directory: Path, content: bytes) -> bool:
    """Any error but the typed one fails the test."""
    path = directory / "model.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except CheckpointCorrupt as error:
        str(error).encode("utf-8")
        return False
    return True


def accepted_there(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True
