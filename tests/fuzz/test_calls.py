"""The fuzz itself: it covers every RPC, and is the same again for the same seed."""

import pytest
from google.protobuf.message import DecodeError

from tests.fuzz.calls import make_call
from tests.fuzz.protocol import METHODS, Method
from tests.fuzz.valid import VALID, Facts

FACTS = Facts("file:///models/tiny", "tiny", "node-0", "tiny-1", "ab" * 16)
CALLS = 2_000
FEW = 20


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.server}-{method.key}")
def test_every_rpc_begins_with_a_valid_request(method: Method) -> None:
    makers = VALID[method.server]
    assert method.key in makers
    assert set(makers) == {one.key for one in METHODS if one.server == method.server}


def test_a_seed_gives_the_same_calls_again() -> None:
    calls = [make_call(1, number, FACTS) for number in range(CALLS)]
    assert calls == [make_call(1, number, FACTS) for number in range(CALLS)]
    assert calls[:FEW] != [make_call(2, number, FACTS) for number in range(FEW)]


def test_every_rpc_gets_valid_messages_wrong_ones_and_what_is_none() -> None:
    calls = [make_call(1, number, FACTS) for number in range(CALLS)]
    assert {call.method for call in calls} == set(METHODS)
    readable = {_is_message(call.method, one) for call in calls for one in call.messages}
    assert readable == {True, False}


def _is_message(method: Method, encoded: bytes) -> bool:
    try:
        method.request.FromString(encoded)
    except DecodeError:
        return False
    return True
