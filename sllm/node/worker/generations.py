"""All requests under way in a worker: into the engine, and out of it."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from sllm.errors import (
    Internal,
    InvalidStructuredOutput,
    RequestIdInUse,
    SllmError,
    UnsupportedModel,
)
from sllm.node.worker.adapters import Adapters
from sllm.node.worker.collecting import Collecting
from sllm.node.worker.engine.interface import Engine, EngineRequest, NewToken, Step
from sllm.node.worker.engine.niceness import Standing
from sllm.node.worker.engine.pages import Prefix
from sllm.node.worker.generation import (
    Accepted,
    Completed,
    Event,
    Failed,
    Generation,
    GenerationRequest,
    Output,
    Tokens,
    prompt_parts,
)
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.parsing import Parsers
from sllm.node.worker.model.seeing import ImageReader
from sllm.node.worker.model.texts import Texts
from sllm.node.worker.outbox import Outbox
from sllm.node.worker.page_keeping import PageKeeping
from sllm.node.worker.request_reader import RequestReader

log = structlog.get_logger()


@dataclass(slots=True)
class _UnderWay:
    """A request that has not ended."""

    key: str
    """Its id in the engine, never used twice: a token that comes late is nobody else's."""
    request_id: str
    taken_at: float
    """By the monotonic clock."""
    beginning: asyncio.Task[None] | None = None
    """Set while its prompt is being tokenised."""
    generation: Generation | None = None
    """Set once the engine has it."""
    prompt: tuple[int, ...] = ()
    """Token ids, if logprobs of them are still to come."""
    asked: EngineRequest | None = None
    """Of the engine, once it was."""
    background: bool = False
    """Whether nobody waits for it."""
    collected: bool = False
    """Whether its tokens are; many logprobs at once would hold up others' tokens."""
    drawn: list[int] = field(default_factory=list)
    """Token ids that the engine has put out."""


class Generations:
    """Belongs to the event loop; the engine's steps come to `take_step` through it."""

    def __init__(
        self,
        files: ModelFiles,
        texts: Texts,
        parsers: Parsers | None,
        engine: Engine,
        context_tokens: int,
        outbox: Outbox,
        adapters: Adapters | None = None,
        images: ImageReader | None = None,
        standing: Standing | None = None,
    ) -> None:
        """Takes requests at once.

        Args:
            files: the model's.
            texts: makes prompts of them.
            parsers: take answers apart. None: nothing does.
            engine: which runs.
            context_tokens: what prompt and generation of a request may have together.
            outbox: takes what comes of requests.
            adapters: those that requests may name. None: they may name none.
            images: reads those of prompts. None: they may have none.
            standing: of the engine's threads. None: they stay where they are.
        """
        self._engine = engine
        self._outbox = outbox
        self._keys = map(str, itertools.count())
        self._by_id: dict[str, _UnderWay] = {}
        self._by_key: dict[str, _UnderWay] = {}
        self._awaited = 0
        """Requests that somebody waits for."""
        self._standing = standing
        self._collecting = Collecting()
        """Of requests that nobody waits for."""
        self.keeping: PageKeeping | None = None
        """Brings pages of prompts that are kept. None: nobody keeps any."""
        self._reader = RequestReader(files, texts, parsers, context_tokens, adapters, images)

    def submit(self, request: GenerationRequest) -> None:
        """Takes a request; whatever comes of it comes through the outbox."""
        if request.request_id in self._by_id:
            error = RequestIdInUse(f"request {request.request_id} is already under way")
            self._put(request.request_id, Failed(error))
            return
        under_way = _UnderWay(
            next(self._keys),
            request.request_id,
            time.monotonic(),
            background=request.background,
            collected=request.background and request.logprobs is None,
        )
        self._by_id[request.request_id] = self._by_key[under_way.key] = under_way
        self._awaited += not request.background
        self._stand()  # before the prompt is read, which takes the processor as well
        under_way.beginning = asyncio.create_task(self._begin(request, under_way))

    def cancel(self, request_id: str) -> None:
        """Ends a request, which is not named again; one that is not there has ended."""
        under_way = self._by_id.get(request_id)
        if under_way is None:
            return
        self._abandon(under_way)
        self._engine.cancel(under_way.key)

    def prefix(self, request_id: str) -> Prefix | None:
        """What the cache has of a request. None: nothing that follows from tokens alone.

        Of its last token, and of a prompt that is being computed, it has nothing yet.
        """
        under_way = self._by_id.get(request_id)
        asked = under_way.asked if under_way else None
        if under_way is None or asked is None or asked.images:
            return None
        return Prefix((*asked.prompt, *under_way.drawn), asked.adapter)

    def take_step(self, step: Step) -> None:
        """Turns a step's tokens into events."""
        first = any(self._is_first(token) for token in step.tokens)
        outputs = [output for token in step.tokens for output in self._push(token)]
        outputs += [output for key in step.broken for output in self._break(key)]
        if step.tokens and not outputs:
            return  # all is held back, and the counters with it
        more = all(isinstance(output.event, Tokens) for output in outputs)
        self._outbox.put(outputs, step.counters, at_once=first or not more)

    def fail_all(self, error: SllmError) -> None:
        """Ends all requests."""
        for under_way in list(self._by_id.values()):
            outputs = tuple(self._told(under_way, Failed(error)))
            self._abandon(under_way)
            self._outbox.put(outputs, self._engine.counters)

    def cancel_all(self) -> None:
        """Ends all requests without a word."""
        for request_id in list(self._by_id):
            self.cancel(request_id)

    def close(self) -> None:
        """Cancels all requests; takes no more."""
        self.cancel_all()
        self._reader.close()

    def release(self) -> None:
        """Gives up what the engine's steps need; it has ended, after `close`."""
        self._reader.release()

    async def _begin(self, request: GenerationRequest, under_way: _UnderWay) -> None:
        ended: Completed | None = None
        try:
            read = await self._reader.read(request, under_way.key, under_way.taken_at)
            if read.engine.prompt_logprobs is not None:
                under_way.prompt = read.prompt
            if self.keeping and not read.ended:
                read.generation.kept = await self.keeping.bring(read.engine, request.prefixes)
            under_way.generation, ended = read.generation, read.ended
            if ended:
                self._forget(under_way)
            else:
                under_way.asked = read.engine
                self._engine.submit(read.engine)
        except SllmError as error:
            self._refuse(under_way, error)
        except Exception as error:
            log.exception("worker.request_failed", request_id=request.request_id)
            self._refuse(under_way, Internal(f"the request could not be begun: {error!r}"))
        else:
            accepted = Output(request.request_id, Accepted(read.prompt))
            self._outbox.put((accepted,), self._engine.counters, at_once=not request.background)
            if ended:
                self._put(request.request_id, ended)
        finally:
            under_way.beginning = None

    def _push(self, token: NewToken) -> Iterator[Output]:
        under_way = self._by_key.get(token.request_id)
        if under_way is None or under_way.generation is None:
            return  # cancelled, or stopped by its text, while the step was under way
        if token.prompt:
            for part in prompt_parts(under_way.prompt, token.prompt):
                yield Output(under_way.request_id, part)
            under_way.prompt = ()
        under_way.drawn.append(token.token_id)
        event = under_way.generation.push(token)
        yield from self._told(under_way, event)
        if isinstance(event, Completed):
            self._forget(under_way)
            if not token.finish:
                self._engine.finish(token.request_id)  # a stop string, which engines do not see

    def _told(self, under_way: _UnderWay, event: Event) -> Iterator[Output]:
        """What is told once a request has come to this."""
        output = Output(under_way.request_id, event)
        return self._collecting.take(output) if under_way.collected else iter((output,))

    def _is_first(self, token: NewToken) -> bool:
        """Whether somebody waits for a token more than for those that follow."""
        under_way = self._by_key.get(token.request_id)
        if under_way is None or under_way.generation is None or under_way.background:
            return False
        return not under_way.generation.begun

    def _break(self, key: str) -> Iterator[Output]:
        under_way = self._by_key.get(key)
        if under_way is None:
            return
        yield from self._told(under_way, Failed(_reason(under_way)))
        self._forget(under_way)

    def _refuse(self, under_way: _UnderWay, error: SllmError) -> None:
        self._forget(under_way)
        self._put(under_way.request_id, Failed(error))

    def _abandon(self, under_way: _UnderWay) -> None:
        self._forget(under_way)
        if under_way.beginning:
            under_way.beginning.cancel()

    def _forget(self, under_way: _UnderWay) -> None:
        self._by_id.pop(under_way.request_id, None)
        if self._by_key.pop(under_way.key, None) and not under_way.background:
            self._awaited -= 1
        self._stand()
        self._collecting.forget(under_way.request_id)
        self._reader.let_go(under_way.key)

    def _stand(self) -> None:
        """Has other processes' work go before the engine's while nobody waits for any of it."""
        if self._standing:
            self._standing.set(behind=bool(self._by_key) and not self._awaited)

    def _put(self, request_id: str, event: Event) -> None:
        self._outbox.put((Output(request_id, event),), self._engine.counters)


def _reason(broken: _UnderWay) -> SllmError:
    """Why a request's logits were no numbers."""
    if broken.generation and (problem := broken.generation.problem_of_form):
        return InvalidStructuredOutput(problem)
    return UnsupportedModel(
        "the model gives no numbers for the next token (NaN or infinite logits): its weights "
        "are damaged, or too large for the dtype in which they are served; or what the request "
        "says of tokens leaves none"
    )
