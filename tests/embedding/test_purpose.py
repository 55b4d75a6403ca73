"""What models may be asked for, by what they are for."""

import dataclasses
import json

import pytest

from sllm import errors
from sllm.embedding.asks import MAX_ANSWER_NUMBERS, EmbedAsk, ScoreAsk
from sllm.embedding.purpose import GENERATES, Purpose, Task
from sllm.embedding.wire import purpose, purpose_message

EMBEDS = Purpose(Task.EMBED, dimensions=64, pooling="mean", normalizes=True)
ANY = dataclasses.replace(EMBEDS, matryoshka=True)
SOME = dataclasses.replace(ANY, matryoshka_dimensions=(8, 32))
SCORES = Purpose(Task.SCORE, labels=("good", "bad"), activation="softmax")
ALL = (GENERATES, EMBEDS, ANY, SOME, SCORES)


@pytest.mark.parametrize("one", ALL)
def test_it_survives_the_wire_and_json(one: Purpose) -> None:
    assert purpose(purpose_message(one)) == one
    kept = Purpose.of(json.loads(json.dumps(dataclasses.asdict(one))))
    assert kept == one
    assert hash(kept) == hash(one)


def test_what_says_nothing_generates() -> None:
    assert purpose(type(purpose_message(EMBEDS))()) == GENERATES


def test_what_a_later_version_is_for_is_taken_to_generate() -> None:
    message = purpose_message(EMBEDS)
    message.task = 99  # type: ignore[assignment]  # as it comes over the wire
    assert purpose(message).task is Task.GENERATE


@pytest.mark.parametrize("one", [GENERATES, EMBEDS, SCORES])
@pytest.mark.parametrize("task", Task)
def test_each_does_what_it_is_for(one: Purpose, task: Task) -> None:
    serves = task is one.task or (one is EMBEDS and task is Task.SCORE)
    if serves:
        one.check_serves(task, "tiny")
    else:
        with pytest.raises(errors.NotServed, match=f"tiny does not {task}; it .*: call"):
            one.check_serves(task, "tiny")


@pytest.mark.parametrize(
    ("one", "good", "bad"),
    [
        (EMBEDS, (64,), (0, -1, 1, 32, 63, 65)),
        (ANY, (1, 32, 63, 64), (0, -1, 65)),
        (SOME, (8, 32, 64), (0, 1, 9, 33, 65)),
    ],
)
def test_vectors_are_cut_as_their_model_was_made_for(
    one: Purpose, good: tuple[int, ...], bad: tuple[int, ...]
) -> None:
    for dimensions in good:
        one.check_dimensions(dimensions)
    for dimensions in bad:
        with pytest.raises(errors.InvalidArgument, match=f"dimensions is {dimensions}; "):
            one.check_dimensions(dimensions)


def test_an_answer_fits_into_a_message() -> None:
    wide = dataclasses.replace(ANY, dimensions=16384)
    count = MAX_ANSWER_NUMBERS // 16384
    EmbedAsk(("a",) * count).validate(wide, "tiny")
    with pytest.raises(errors.InvalidArgument, match="ask for fewer at once"):
        EmbedAsk(("a",) * (count + 1)).validate(wide, "tiny")
    EmbedAsk(("a",) * (count + 1), dimensions=64).validate(wide, "tiny")


def test_documents_have_their_queries() -> None:
    documents = ("a", "b")
    assert ScoreAsk(("q",), documents).pairs == (("q", "a"), ("q", "b"))
    assert ScoreAsk(("q", "r"), documents).pairs == (("q", "a"), ("r", "b"))
    assert ScoreAsk(("q",), ("a",)).pairs == (("q", "a"),)
    ScoreAsk((), documents).validate(SCORES, "tiny")
