"""An engine in which requests that nobody waits for give their part of the cache to others.

Engines serve whoever has a part of the cache before whoever waits for one, and take parts away as
they please. So while somebody waits for one, a request that nobody waits for is ended in the
engine, and goes on later from its tokens, as it would elsewhere.
"""

import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sllm.node.worker.engine.interface import Counters, Engine, EngineRequest, NewToken, Step
from sllm.node.worker.engine.pages import EnginePages

_PATIENCE: Final = 2
"""Steps without a token for somebody who waits, before anybody gives their part up."""
_PROMPT_TOKENS: Final = 128
"""Of a prompt, what a step computes at least."""
_REST: Final = 32
"""Steps for which who has given it up rests at least while others are served."""


@dataclass(slots=True)
class _Tracked:
    """A request under way."""

    request: EngineRequest
    engine_id: str
    """Its id in the engine: another one each time that it goes on."""
    tokens: list[int] = field(default_factory=list)
    """Of one that nobody waits for."""
    cached_prompt_tokens: int | None = None
    """As the engine told first."""
    quiet_steps: int = 0
    """Since its last token, or since it came."""

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it."""
        return not (self.request.background or self.request.gives_way)

    def patience(self, is_short: bool) -> int:
        """Steps without a token that are as they should be, if some wait for a part or not."""
        prompt = 0 if is_short else len(self.request.prompt) // _PROMPT_TOKENS
        return _PATIENCE + prompt

    def remaining(self, engine_id: str) -> EngineRequest:
        """What is left of it, as a request of its own."""
        count = len(self.tokens)
        return replace(
            self.request,
            request_id=engine_id,
            prompt=self.request.prompt + tuple(self.tokens),
            max_tokens=self.request.max_tokens - count,
            first_position=self.request.first_position + count,
        )


class YieldingEngine:
    """See `Engine`. Where nothing is under way that nobody waits for, it stands aside."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        """What is asked comes from the event loop, steps from the engine's thread."""
        self._numbers = itertools.count()
        self._by_id: dict[str, _Tracked] = {}
        self._by_engine_id: dict[str, _Tracked] = {}
        """Those that the engine has."""
        self._resting: list[_Tracked] = []
        """Those that have given their part up, the first of them first."""
        self._background = 0
        """Requests that nobody waits for."""
        self._steps = 0
        """As the engine has counted them last."""
        self._rested_steps = 0
        """Since anybody gave their part up."""

    @property
    def counters(self) -> Counters:
        """As of the latest step."""
        return self._counted(self._engine.counters)

    @property
    def pages(self) -> EnginePages | None:
        """See `Engine.pages`."""
        return self._engine.pages

    @property
    def adapted_layers(self) -> Mapping[str, tuple[int, int]]:
        """See `Engine.adapted_layers`."""
        return self._engine.adapted_layers

    def start(
        self, on_step: Callable[[Step], None], on_failure: Callable[[Exception], None]
    ) -> None:
        """See `Engine.start`."""

        def take(step: Step) -> None:
            with self._lock:
                seen = self._take(step)
            on_step(seen)

        self._engine.start(take, on_failure)

    def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`."""
        with self._lock:
            tracked = _Tracked(request, request.request_id)
            self._by_id[request.request_id] = self._by_engine_id[tracked.engine_id] = tracked
            self._background += request.background
            self._engine.submit(request)

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        self._end(request_id, self._engine.cancel)

    def finish(self, request_id: str) -> None:
        """See `Engine.finish`."""
        self._end(request_id, self._engine.finish)

    def stop(self) -> None:
        """See `Engine.stop`."""
        self._engine.stop()

    def _end(self, request_id: str, end: Callable[[str], None]) -> None:
        with self._lock:
            tracked = self._by_id.get(request_id)
            if tracked is None:
                return
            if tracked in self._resting:
                self._resting.remove(tracked)
            else:
                end(tracked.engine_id)
            self._forget(tracked)
            if not self._is_anybody_served():  # perhaps no step comes any more
                self._go_on()

    # --- steps --------------------------------------------------------------------------------

    def _take(self, step: Step) -> Step:
        """A step as others are to see it."""
        tokens = [token for one in step.tokens if (token := self._token(one))]
        broken = [one for key in step.broken if (one := self._by_engine_id.get(key))]
        for one in broken:
            self._forget(one)
        if self._background:
            self._look(step)
        return replace(
            step,
            tokens=tuple(tokens),
            broken=tuple(one.request.request_id for one in broken),
            counters=self._counted(step.counters),
        )

    def _token(self, token: NewToken) -> NewToken | None:
        tracked = self._by_engine_id.get(token.request_id)
        if tracked is None:
            return None  # it was ended while the step was under way
        tracked.quiet_steps = -1  # of this step
        if tracked.request.background:
            tracked.tokens.append(token.token_id)
            if tracked.cached_prompt_tokens is None:
                tracked.cached_prompt_tokens = token.cached_prompt_tokens
            token = replace(
                token,
                request_id=tracked.request.request_id,
                cached_prompt_tokens=tracked.cached_prompt_tokens,
            )
        if token.finish:
            self._forget(tracked)
        return token

    def _look(self, step: Step) -> None:
        """Has one give its part up, or go on, if it is time for that."""
        stepped, self._steps = step.counters.steps - self._steps, step.counters.steps
        for tracked in self._by_engine_id.values() if stepped else ():
            tracked.quiet_steps += 1
        self._rested_steps += stepped
        is_short = step.counters.waiting_requests > 0
        if self._is_anybody_starved(is_short):
            self._give_up()
        elif not self._is_anybody_served() or (not is_short and self._rested_steps >= _REST):
            self._go_on()

    def _is_anybody_starved(self, is_short: bool) -> bool:
        """Whether somebody who waits gets nothing.

        Some wait for a part of the cache, or so it looks: those who have a part of a prompt's may
        lack the rest of it.
        """
        awaited = [one for one in self._by_engine_id.values() if one.is_awaited]
        return any(one.quiet_steps >= one.patience(is_short) for one in awaited)

    def _is_anybody_served(self) -> bool:
        return any(one.is_awaited for one in self._by_engine_id.values())

    def _give_up(self) -> None:
        """Ends the last of those that nobody waits for in the engine."""
        behind = [one for one in self._by_engine_id.values() if one.request.background]
        if not behind:
            return
        tracked = behind[-1]
        del self._by_engine_id[tracked.engine_id]
        self._engine.finish(tracked.engine_id)
        self._resting.insert(0, tracked)
        self._rested_steps = 0

    def _go_on(self) -> None:
        """Gives the first of those that rest to the engine again."""
        if not self._resting:
            return
        tracked = self._resting.pop(0)
        tracked.engine_id = f"{tracked.request.request_id}+{next(self._numbers)}"
        tracked.quiet_steps = 0
        self._by_engine_id[tracked.engine_id] = tracked
        self._engine.submit(tracked.remaining(tracked.engine_id))

    def _forget(self, tracked: _Tracked) -> None:
        self._by_id.pop(tracked.request.request_id, None)
        self._by_engine_id.pop(tracked.engine_id, None)
        self._background -= tracked.request.background

    def _counted(self, counters: Counters) -> Counters:
        resting = len(self._resting)
        if not resting:
            return counters
        return replace(counters, waiting_requests=counters.waiting_requests + resting)
