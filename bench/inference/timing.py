"""What is asked of every contender, and how its tokens are timed."""

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

PROMPT_TOKENS = 24
"""Of each stream whose decoding is measured."""
_random = random.Random(1)


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests that are put at once."""

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    """That each of them gets."""
    seeded: bool = False
    """Whether tokens are drawn at temperature 1, by seeds; else the likeliest are taken."""


class Contender(Protocol):
    """An engine, wherever it runs."""

    def decode(self, streams: int, tokens: int, seeded: bool = False) -> float:
        """Tokens per second of all streams, while all of them are under way."""
        ...

    def first_token(self, prompt_tokens: int) -> float:
        """Seconds to the first token of a prompt that nothing of has been computed."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def new_prompts(count: int, tokens: int, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """Prompts that no cache knows."""
    return tuple(
        tuple(_random.randrange(10, vocabulary) for _ in range(tokens)) for _ in range(count)
    )


def seconds_to_first(steps: Iterator[Sequence[str]]) -> float:
    """Until the first of the steps; takes them all."""
    began = time.perf_counter()
    next(steps)
    seconds = time.perf_counter() - began
    for _ in steps:
        pass
    return seconds


class Rate:
    """Tokens per second from the moment when each stream has one."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._of: Counter[str] = Counter()
        self._began = self._ended = 0.0
        self._before = 0

    def take(self, names: Iterable[str]) -> None:
        """Notes a token of each of these streams."""
        self._of.update(names)
        self._ended = time.perf_counter()
        if len(self._of) == self._streams and not self._began:
            self._began, self._before = self._ended, self._of.total()

    @property
    def tokens_per_second(self) -> float:
        """Of all streams together."""
        return (self._of.total() - self._before) / (self._ended - self._began)
