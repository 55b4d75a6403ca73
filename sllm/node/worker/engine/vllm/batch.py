"""The requests of a core, as far as vLLM does not keep them, and the counters."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sllm.node.worker.engine.choosing import Chosen
from sllm.node.worker.engine.interface import EngineRequest, FinishReason, NewToken, PromptLogprobs
from sllm.node.worker.engine.prompt_scores import PromptScores


@dataclass(slots=True)
class Running(Chosen):
    """What is known of a request."""

    key: str = ""
    """Its id in the core. No id is used twice there, and one that is computed part by part has one
    for each part. Empty: the core does not have it."""
    cached_prompt_tokens: int | None = None
    """None: it has not been scheduled."""
    scores: PromptScores | None = None
    """Of its prompt, if it asks and they are read here, until they are passed on."""
    prompt: PromptLogprobs | None = None
    """The same as the core has told them."""
    computed: int = 0
    """Of one that gives way: tokens of the prompt, from its beginning, up to the end of the part
    that the core has or has had last; before the first, those that were in the cache."""

    @property
    def is_part(self) -> bool:
        """Whether the core has only the beginning of its prompt, whose token nobody wants."""
        return self.request.gives_way and self.computed < len(self.request.prompt)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for its first token."""
        return not (self.generated or self.request.background or self.request.gives_way)

    def note(self, output: Any) -> None:
        """Notes what an output of the core says beside its token."""
        if self.cached_prompt_tokens is None and output.prefill_stats is not None:
            self.cached_prompt_tokens = output.prefill_stats.num_cached_tokens
        if (told := output.new_prompt_logprobs_tensors) is not None:
            # Of each token of the prompt the first column is its own.
            ids, logprobs = told.logprob_token_ids.cpu(), told.logprobs.cpu()
            self.prompt = PromptLogprobs(logprobs[:, 0], ids[:, 1:], logprobs[:, 1:])

    def token(self, token_id: int, finish: FinishReason | None) -> NewToken:
        """The next token of the generation."""
        self.take(token_id)
        prompt = self.scores.whole() if self.scores else self.prompt
        self.scores = self.prompt = None
        return NewToken(
            request_id=self.request.request_id,
            token_id=token_id,
            logprob=self.logprob,
            finish=finish,
            cached_prompt_tokens=self.cached_prompt_tokens or 0,
            prompt=prompt,
        )


class Batch:
    """The requests under way.

    Threads: `add` and `drop` may be called from any thread; what they do to a dict are single
    operations. The rest belongs to the engine's thread.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Running] = {}
        self._by_key: dict[str, Running] = {}
        self._keys = map(str, itertools.count())

    def add(self, request: EngineRequest) -> Running:
        """Takes a request."""
        running = self._by_id[request.request_id] = Running(request)
        return running

    def drop(self, request_id: str) -> Running | None:
        """Forgets a request, which is named in no step from now on; None: it has ended."""
        return self._by_id.pop(request_id, None)

    def enter(self, running: Running) -> str:
        """Gives a request the id under which it goes into the core."""
        running.key = next(self._keys)
        self._by_key[running.key] = running
        return running.key

    def leave(self, running: Running) -> None:
        """The core is done with what it has of a request."""
        self._by_key.pop(running.key, None)
        running.key = ""

    def of_key(self, key: str | None) -> Running | None:
        """The request of this id in the core, if it still wants tokens."""
        running = self._by_key.get(key) if key else None
        return running if running and self.wants(running) else None

    def wants(self, running: Running) -> bool:
        """Whether a request has neither ended nor been cancelled."""
        return self._by_id.get(running.request.request_id) is running

    def is_background(self, key: str) -> bool:
        """Whether nobody waits for what the core has under this id."""
        running = self._by_key.get(key)
        return running is not None and running.request.background

    def has_awaited(self) -> bool:
        """Whether somebody waits for a first token."""
        return any(one.is_awaited for one in self._by_key.values())

    def held(self, key: str) -> Running | None:
        """The request of this id in the core, even if nobody wants its tokens any more."""
        return self._by_key.get(key)

    def in_core(self) -> Iterable[Running]:
        """Requests that the core has."""
        return self._by_key.values()
