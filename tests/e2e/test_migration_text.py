"""Generations that move in the midst of a character, and in the midst of a stop string."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sllm
from tests.e2e.cluster import Cluster
from tests.e2e.engines import by_turns
from tests.e2e.generations import moved, same, two_instances
from tests.e2e.scripted import WORDS, characters, make_scripted_model, token_ids

SPLIT = "".join(characters())
"""Text of which each token is a part of a character."""
SCRIPT = WORDS + token_ids(SPLIT)
ENOUGH = 3
"""Cuts that must fall where they are to fall."""
TRIES = 20
DRAWS: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scripted_model(tmp_path_factory.mktemp("text") / "scripted", SCRIPT)


@pytest.fixture(scope="module")
def pair(cluster: Cluster, model: Path, engine: str) -> Iterator[Cluster]:
    """Two nodes with an instance each of one deployment, which stay."""
    with two_instances(cluster, "scripted", model, engine):
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


@dataclass
class Teller:
    """Generations that begin with the words before the split characters."""

    client: sllm.AsyncClient
    options: dict[str, Any]
    first: int
    """Token of the generation at which a move is asked for."""

    def ask(self) -> sllm.AsyncStream:
        return self.client.generate("scripted", prompt_token_ids=[WORDS[-21]], **self.options)

    async def moved(self) -> tuple[sllm.Result, int]:
        """A generation that has moved, and after how many of its tokens."""
        stream, migration = await moved(self.client, self.ask, self.first)
        (move,) = migration.requests
        return await stream.result(), move.tokens - 1


@by_turns("drawn", *DRAWS)
async def test_cuts_within_a_character(client: sllm.AsyncClient, drawn: dict[str, Any]) -> None:
    options = {"max_tokens": 140, "ignore_eos": True, "logprobs": 2, **drawn}
    teller = Teller(client, options, first=24)
    expected = await teller.ask().result()
    assert SPLIT in expected.text
    within = 0
    for _ in range(TRIES):
        result, cut = await teller.moved()
        same([result], [expected])
        assert result.logprobs is not None
        assert len(result.logprobs) == 140
        within += _is_split(expected.token_ids[20:cut])
        if within == ENOUGH:
            return
    pytest.fail(f"of {TRIES} cuts {within} were within a character")


@by_turns("drawn", *reversed(DRAWS))
async def test_cuts_within_a_stop_string(client: sllm.AsyncClient, drawn: dict[str, Any]) -> None:
    stop = SPLIT[2:]
    begins = 20 + len(SPLIT[:2].encode())
    options = {"max_tokens": 400, "ignore_eos": True, "stop": [stop], **drawn}
    teller = Teller(client, options, first=begins + 2)
    expected = await teller.ask().result()
    assert (expected.finish_reason, expected.stop) == ("STOP", stop)
    assert expected.text.endswith(SPLIT[:2])
    within = 0
    for _ in range(TRIES):
        result, cut = await teller.moved()
        same([result], [expected])
        assert result.stop == stop
        within += begins < cut < len(expected.token_ids)
        if within == ENOUGH:
            return
    pytest.fail(f"of {TRIES} cuts {within} were within the stop string")


def _is_split(tokens: tuple[int, ...]) -> bool:
    """Whether the script's characters are cut short after these of its tokens."""
    told = SPLIT.encode()[: len(tokens)]
    if len(tokens) > len(told):
        return False
    try:
        told.decode()
    except UnicodeDecodeError:
        return True
    return False
