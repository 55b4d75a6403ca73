"""Requests of one length that move together from one node to another, and what that took."""

import asyncio
import gc
import math
import operator
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sllm
from bench.moving.timed import Timed, all_until

BEFORE, AFTER = 8, 12
"""Tokens that each has generated before the move is asked for, and that are timed after it."""
MOST = 2000
"""Tokens that are generated at most: the move takes place while they are."""
STILL = 24
"""Tokens of an undisturbed generation that are timed."""
STEPS_ALLOWED = 1.5
"""Decode steps that a pause may last, beside the recompute of the last gap."""
IDS = range(300, 900)
"""Token ids of prompts: in every vocabulary here, and none of them special."""


@dataclass(slots=True)
class Case:
    """What was seen of requests of one length that moved together. Seconds."""

    length: int
    """Tokens of prompt and generation when the move was asked for."""
    count: int
    """Requests that move together."""
    pauses: list[float] = field(default_factory=list)
    """Longest gap between tokens, of requests that moved."""
    undisturbed: list[float] = field(default_factory=list)
    """The same of requests that did not."""
    steps: list[float] = field(default_factory=list)
    """Median gap between tokens, of those that did not."""
    cutovers: list[float] = field(default_factory=list)
    """From the source's stop to the destination's going on."""
    rounds: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    """Tokens that were sent with the cutover."""
    gap_recomputes: list[float] = field(default_factory=list)
    """What computing the last gap of one takes, on an engine that has all else, and is idle."""
    anew: list[float] = field(default_factory=list)
    """Time to the first token of as many requests whose whole cache has to be computed first;
    measured once."""
    estimates: list[tuple[float, float]] = field(default_factory=list)
    """Of migrations: what was expected, and what it took."""
    ended: int = 0
    """Requests that had ended before they could move."""
    lost: int = 0
    twice: int = 0
    expected: list[Sequence[int]] = field(default_factory=list)
    """The tokens of each request, undisturbed, as many as were needed so far."""

    @property
    def worst_pause(self) -> float:
        """At the 99th percentile, which of so few is the longest."""
        return percentile_99(self.pauses)

    @property
    def bound(self) -> float:
        """What a pause may last: 1.5 decode steps and the recompute of the last gap."""
        step, recompute = map(statistics.median, (self.steps, self.gap_recomputes))
        return STEPS_ALLOWED * step + recompute


class Bench:
    """A model with one instance, which moves from node to node."""

    def __init__(self, client: sllm.AsyncClient, name: str, nodes: Sequence[str]) -> None:
        self._client = client
        self._name = name
        self._nodes = nodes
        self._random = random.Random(1)

    async def measure(self, case: Case) -> None:
        """Generates and moves; generates undisturbed; computes what had to be computed."""
        drawn = random.Random(f"{case.length} x {case.count}")  # the same prompts in every round
        prompts = [drawn.choices(IDS, k=case.length - BEFORE) for _ in range(case.count)]
        with _no_collections():
            moved, moves = await self._move(prompts, case)
            await self._stay(prompts, case)
        await self._compare(prompts, moved, case)
        await self._compute_gaps(prompts, moved, moves, case)
        if not case.anew:
            fresh = [self._prompt(case.length) for _ in prompts]
            case.anew += await asyncio.gather(*(self._first_token(one) for one in fresh))

    async def _move(
        self, prompts: Sequence[list[int]], case: Case
    ) -> tuple[list[Timed], dict[str, sllm.RequestMigration]]:
        streams = [self._ask(one, MOST) for one in prompts]
        await all_until(streams, BEFORE)
        (instance,) = await self._client.instances()
        (away,) = set(self._nodes) - {instance.node_id}
        began = time.monotonic()
        migration = await self._client.migrate(instance_id=instance.instance_id, to_node=away)
        moves = {one.request_id: one for one in migration.requests if one.outcome == "MOVED"}
        moved = [one for one in streams if one.request_id in moves]
        await asyncio.gather(*(one.until_after_move(AFTER) for one in moved))
        await asyncio.gather(*(one.leave() for one in streams))
        case.ended += len(streams) - len(moved)
        case.pauses += [max(one.gaps_since(began)) for one in moved]
        case.cutovers += [one.cutover for one in moves.values()]
        case.rounds += [one.rounds for one in moves.values()]
        case.gaps += [one.gap for one in moves.values()]
        if migration.estimate is not None and moves:
            case.estimates.append((migration.estimate, migration.duration))
        await self._until_alone()
        return streams, moves

    async def _stay(self, prompts: Sequence[list[int]], case: Case) -> None:
        """Generates the same at one place."""
        streams = [self._ask(prompt, BEFORE + STILL) for prompt in prompts]
        await all_until(streams, BEFORE)
        began = time.monotonic()
        await all_until(streams, BEFORE + STILL)
        for still in streams:
            gaps = still.gaps_since(began)
            case.undisturbed.append(max(gaps))
            case.steps.append(statistics.median(gaps))

    async def _compare(
        self, prompts: Sequence[list[int]], moved: Sequence[Timed], case: Case
    ) -> None:
        """Counts tokens that are missing or another one, and those that should not be there."""
        longest = max(len(one.token_ids) for one in moved)
        if not case.expected or longest > len(case.expected[0]):
            streams = [self._ask(prompt, longest) for prompt in prompts]
            await all_until(streams, longest)
            case.expected = [one.token_ids for one in streams]
        for one, expected in zip(moved, case.expected, strict=True):
            same = sum(map(operator.eq, one.token_ids, expected))
            case.lost += len(one.token_ids) - same
            case.twice += max(0, len(one.token_ids) - MOST)

    async def _compute_gaps(
        self,
        prompts: Sequence[list[int]],
        moved: Sequence[Timed],
        moves: dict[str, sllm.RequestMigration],
        case: Case,
    ) -> None:
        """Has the engine compute as much as it had to after each cutover, one after the other."""
        for prompt, one in zip(prompts, moved, strict=True):
            if move := moves.get(one.request_id):
                known = [*prompt, *one.token_ids][: move.tokens - move.gap]
                again = known + self._prompt(move.gap)
                case.gap_recomputes.append(await self._first_token(again, engine=True))

    def _ask(self, prompt: list[int], max_tokens: int) -> Timed:
        return Timed(
            self._client.generate(
                self._name,
                prompt_token_ids=prompt,
                max_tokens=max_tokens,
                temperature=0.0,
                ignore_eos=True,
            )
        )

    async def _first_token(self, prompt: list[int], *, engine: bool = False) -> float:
        """Seconds to the first token: all of them, or the engine's alone."""
        result = await self._client.complete(
            self._name, prompt_token_ids=prompt, max_tokens=1, temperature=0.0
        )
        if not engine:
            return result.receipt.time_to_first_token
        return next(one.duration for one in result.receipt.phases if one.kind == "PREFILL")

    async def _until_alone(self) -> None:
        """Returns once what has moved away is gone, so that one instance is left."""
        async with asyncio.timeout(60.0):
            while len(await self._client.instances()) != 1:  # noqa: ASYNC110 - it is elsewhere
                await asyncio.sleep(0.05)

    def _prompt(self, length: int) -> list[int]:
        return self._random.choices(IDS, k=length)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keeps this process from pausing itself, for up to 200 ms with all that it holds."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def percentile_99(values: Sequence[float]) -> float:
    """The value that 99 in 100 do not exceed. NaN: there is none, as where all ended too soon."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
