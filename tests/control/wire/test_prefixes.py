"""Names of what prompts begin with, as requests have them."""

import math

import pytest
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.control.wire.prefixes import _MOST_MESSAGES, _TOGETHER, kept, settle_prefixes
from sllm.prompt_prefixes import prefixes_of

LONG = "You are kind. " * 100


def conversation(*texts: str) -> pb.GenerateRequest:
    request = pb.GenerateRequest(deployment="a")
    for text in texts:
        request.messages.messages.add(role="user", content=text)
    return request


def names(request: pb.GenerateRequest) -> list[int]:
    settle_prefixes([request], "identity")
    return list(request.prefixes.names)


def test_a_conversation_that_goes_on_begins_as_it_did() -> None:
    before = names(conversation(LONG))
    assert before
    assert names(conversation(LONG, LONG))[: len(before)] == before


@pytest.mark.parametrize("count", [_TOGETHER - 1, _TOGETHER, _TOGETHER + 1, 3 * _TOGETHER])
def test_many_messages_have_the_names_of_their_bytes(count: int) -> None:
    request = conversation(*map(str, range(count)))
    parts = [one.SerializeToString(deterministic=True) for one in request.messages.messages]
    expected = prefixes_of("a identity  messages", [b"".join(parts)])
    assert names(request) == list(expected.names)
    assert request.prefixes.size_bytes == expected.size_bytes


def test_what_comes_behind_very_many_messages_has_no_name() -> None:
    """To name all that a caller may send would hold up everybody else's streams."""
    most, more = (conversation(*["Hi"] * (_MOST_MESSAGES + beyond)) for beyond in (0, 10_000))
    assert names(more) == names(most)
    assert more.prefixes.size_bytes > 1.5 * most.prefixes.size_bytes


def test_all_samples_of_a_prompt_have_its_names() -> None:
    samples = [conversation(LONG) for _ in range(3)]
    samples[1].prefixes.keeper.address = "somewhere:1"  # that a caller has no say in
    settle_prefixes(samples, "identity")
    assert [list(one.prefixes.names) for one in samples] == [names(conversation(LONG))] * 3
    assert not samples[1].prefixes.HasField("keeper")


def test_a_prompt_with_images_has_none_wherever_they_are() -> None:
    """Nothing is kept of it, and a node that keeps what its text begins with saves it nothing."""
    seeing = conversation(LONG)
    seeing.messages.messages.add(role="user").parts.add().image.data = b"image"
    assert names(seeing) == []
    tokens = pb.GenerateRequest(deployment="a")
    tokens.token_ids.ids.extend(range(1000))
    assert names(tokens)
    tokens.images.add(data=b"image")
    assert names(tokens) == []


@pytest.mark.parametrize(
    ("saved", "found"),
    [
        ([1.0, 2.0], {7: 1.0, 8: 2.0}),
        ([1.0], {7: 1.0}),
        ([1.0, 2.0, 3.0], {7: 1.0, 8: 2.0}),
        ([-1.0, 2.0], {8: 2.0}),
        ([math.inf, math.nan], {}),
    ],
)
def test_what_a_node_keeps_is_taken_as_far_as_it_makes_sense(
    saved: list[float], found: dict[int, float]
) -> None:
    assert kept(fleet_pb.KeptPrefixes(names=[7, 8], saved_seconds=saved)) == found
