"""Names of what prompts begin with, as requests have them."""

from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.control.wire.prefixes import settle_prefixes

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
