"""All requests under way in a worker: into the engine, and out of it."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import structlog

from sllm import bounds
from sllm.errors import (
    Internal,
    InvalidArgument,
    InvalidStructuredOutput,
    NotServed,
    RequestIdInUse,
    SllmError,
    UnsupportedModel,
)
from sllm.node.worker.adapters import Adapters
from sllm.node.worker.engine.adapters import Adapter
from sllm.node.worker.engine.interface import (
    Engine,
    EngineRequest,
    FinishReason,
    NewToken,
    Step,
    TokenGrammar,
)
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
from sllm.node.worker.model import prompts, words
from sllm.node.worker.model.forced_calls import ForcedCalls
from sllm.node.worker.model.grammars import Grammars
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.parsing import OutputParser, Parsers
from sllm.node.worker.model.prompts import RenderedPrompt, TextPrompt, TokenPrompt
from sllm.node.worker.model.texts import Texts
from sllm.node.worker.outbox import Outbox
from sllm.prompt_size import check_size
from sllm.sampling import MAX_SEED

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What the tokenizer has made of a request."""

    prompt: tuple[int, ...]
    forbidden: tuple[tuple[int, ...], ...]
    grammar: TokenGrammar | None
    adapter: Adapter | None


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
    ) -> None:
        """`adapters`: those that requests may name. None: they may name none."""
        self._files = files
        self._adapters = adapters
        self._engine = engine
        self._context_tokens = context_tokens
        self._outbox = outbox
        self._keys = map(str, itertools.count())
        self._by_id: dict[str, _UnderWay] = {}
        self._by_key: dict[str, _UnderWay] = {}
        self._texts = texts
        self._parsers = parsers
        self._grammars = Grammars(files.tokenizer, files.vocabulary_size, files.stop_token_ids)

    def submit(self, request: GenerationRequest) -> None:
        """Takes a request; whatever comes of it comes through the outbox."""
        if request.request_id in self._by_id:
            error = RequestIdInUse(f"request {request.request_id} is already under way")
            self._put(request.request_id, Failed(error))
            return
        under_way = _UnderWay(next(self._keys), request.request_id, time.monotonic())
        self._by_id[request.request_id] = self._by_key[under_way.key] = under_way
        under_way.beginning = asyncio.create_task(self._begin(request, under_way))

    def cancel(self, request_id: str) -> None:
        """Ends a request, which is not named again; one that is not there has ended."""
        under_way = self._by_id.get(request_id)
        if under_way is None:
            return
        self._abandon(under_way)
        self._engine.cancel(under_way.key)

    def take_step(self, step: Step) -> None:
        """Turns a step's tokens into events."""
        first = any(self._is_first(token) for token in step.tokens)
        outputs = [output for token in step.tokens for output in self._push(token)]
        outputs += [output for key in step.broken if (output := self._break(key))]
        more = all(isinstance(output.event, Tokens) for output in outputs)
        self._outbox.put(outputs, step.counters, at_once=first or not more)

    def fail_all(self, error: SllmError) -> None:
        """Ends all requests."""
        for under_way in list(self._by_id.values()):
            self._abandon(under_way)
            self._put(under_way.request_id, Failed(error))

    def cancel_all(self) -> None:
        """Ends all requests without a word."""
        for request_id in list(self._by_id):
            self.cancel(request_id)

    def close(self) -> None:
        """Cancels all requests; takes no more."""
        self.cancel_all()

    def release(self) -> None:
        """Gives up what the engine's steps need; it has ended, after `close`."""
        self._grammars.close()

    async def _begin(self, request: GenerationRequest, under_way: _UnderWay) -> None:
        ended: Completed | None = None
        try:
            rendered = await self._texts.rendered(request.prompt)
            size = prompts.size_bytes(rendered)
            check_size(size, self._context_tokens)
            grammar, adapter = await self._grammar(request), self._adapter(request)
            tokens = await self._texts.run(size, self._encode, request, rendered, grammar, adapter)
            prompt = tokens.prompt
            engine_request = self._engine_request(request, tokens, under_way.key)
            finish = _finish_before(engine_request)
            if engine_request.prompt_logprobs is not None:
                under_way.prompt = prompt
            under_way.generation, ended = await self._texts.run(
                prompts.LETTERS_PER_TOKEN * len(request.generated),  # made text again
                self._follow,
                request,
                prompt,
                under_way.taken_at,
                finish,
                grammar,
            )
            if ended:
                self._forget(under_way)
            else:
                self._engine.submit(engine_request)
        except SllmError as error:
            self._refuse(under_way, error)
        except Exception as error:
            log.exception("worker.request_failed", request_id=request.request_id)
            self._refuse(under_way, Internal(f"the request could not be begun: {error!r}"))
        else:
            self._put(request.request_id, Accepted(prompt))
            if ended:
                self._put(request.request_id, ended)
        finally:
            under_way.beginning = None

    async def _grammar(self, request: GenerationRequest) -> TokenGrammar | None:
        """What the text's form is followed by. Of what is computed ahead no token is wanted."""
        if request.form is None or request.gives_way:
            return None
        request.form.validate()
        prompts.check_known(request.generated, self._files.vocabulary_size)
        return await self._grammars.begin(request.form, request.generated)

    def _encode(
        self,
        request: GenerationRequest,
        prompt: TextPrompt | TokenPrompt | RenderedPrompt,
        grammar: TokenGrammar | None,
        adapter: Adapter | None,
    ) -> "_Encoded":
        files, size = self._files, self._files.vocabulary_size
        request.sampling.validate(request.max_tokens)
        prompts.check_known(request.generated, size)
        words.check_known(request.sampling, size)
        forbidden = words.sequences(request.sampling.bad_words, files.tokenizer, size)
        encoded = prompts.encode(prompt, files.tokenizer, size)
        return _Encoded(encoded, forbidden, grammar, adapter)

    def _adapter(self, request: GenerationRequest) -> Adapter | None:
        if not request.adapter_id:
            return None
        if self._adapters is None:
            raise NotServed("the instance takes no adapters (max_adapters)")
        return self._adapters.get(request.adapter_id)

    def _follow(
        self,
        request: GenerationRequest,
        prompt: tuple[int, ...],
        taken_at: float,
        finish: FinishReason | None,
        grammar: TokenGrammar | None,
    ) -> tuple[Generation, Completed | None]:
        vocabulary, parser = self._files.vocabulary, self._parser(request, prompt)
        generation = Generation(request, len(prompt), vocabulary, taken_at, grammar, parser)
        return generation, generation.ended(finish)

    def _parser(self, request: GenerationRequest, prompt: tuple[int, ...]) -> OutputParser | None:
        """What takes the answer apart. Of what is computed ahead nothing is said."""
        parsing, skips = request.parsing, request.skip_special_tokens
        if parsing is None or request.gives_way:
            return None
        parsing.validate()
        # One request has several ids on its way from node to node, which begin alike.
        request_id = request.request_id.rpartition("/")[0] or request.request_id
        if parsing.choice.is_forced:
            return ForcedCalls(parsing.choice, request_id, skips_special_tokens=skips)
        if self._parsers is None:
            return None
        return self._parsers.begin(parsing, prompt, request_id, skips_special_tokens=skips)

    def _engine_request(
        self, request: GenerationRequest, tokens: "_Encoded", key: str
    ) -> EngineRequest:
        prompt = tokens.prompt
        asked = request.prompt_logprobs
        bounds.check_output(request.max_tokens, request.logprobs, request.stop, asked)
        allowance = prompts.token_allowance(len(prompt), request.max_tokens, self._context_tokens)
        generated = len(request.generated)
        if generated > allowance:
            raise InvalidArgument(f"{generated} tokens were generated of {allowance} at most")
        stop_token_ids = request.stop_token_ids
        if not request.ignore_eos:
            stop_token_ids |= self._files.stop_token_ids
        words.check_endless(request.sampling, stop_token_ids)
        return EngineRequest(
            request_id=key,
            prompt=prompt + request.generated,
            sampling=replace(request.sampling, seed=_seed(request.sampling.seed)),
            max_tokens=allowance - generated,
            stop_token_ids=stop_token_ids,
            forbidden=tokens.forbidden,
            grammar=tokens.grammar,
            logprobs=request.logprobs,
            # Told before the first token, wherever that was generated.
            prompt_logprobs=None if generated or request.gives_way else asked,
            first_position=generated,
            gives_way=request.gives_way,
            background=request.background,
            adapter=tokens.adapter,
        )

    def _push(self, token: NewToken) -> Iterator[Output]:
        under_way = self._by_key.get(token.request_id)
        if under_way is None or under_way.generation is None:
            return  # cancelled, or stopped by its text, while the step was under way
        if token.prompt:
            for part in prompt_parts(under_way.prompt, token.prompt):
                yield Output(under_way.request_id, part)
            under_way.prompt = ()
        event = under_way.generation.push(token)
        if isinstance(event, Completed):
            self._forget(under_way)
            if not token.finish:
                self._engine.finish(token.request_id)  # a stop string, which engines do not see
        yield Output(under_way.request_id, event)

    def _is_first(self, token: NewToken) -> bool:
        under_way = self._by_key.get(token.request_id)
        return bool(under_way and under_way.generation and not under_way.generation.begun)

    def _break(self, key: str) -> Output | None:
        under_way = self._by_key.get(key)
        if under_way is None:
            return None
        self._forget(under_way)
        if under_way.generation and (problem := under_way.generation.problem_of_form):
            return Output(under_way.request_id, Failed(InvalidStructuredOutput(problem)))
        error = UnsupportedModel(
            "the model gives no numbers for the next token (NaN or infinite logits): its weights "
            "are damaged, or too large for the dtype in which they are served; or what the request "
            "says of tokens leaves none"
        )
        return Output(under_way.request_id, Failed(error))

    def _refuse(self, under_way: _UnderWay, error: SllmError) -> None:
        self._forget(under_way)
        self._put(under_way.request_id, Failed(error))

    def _abandon(self, under_way: _UnderWay) -> None:
        self._forget(under_way)
        if under_way.beginning:
            under_way.beginning.cancel()

    def _forget(self, under_way: _UnderWay) -> None:
        self._by_id.pop(under_way.request_id, None)
        self._by_key.pop(under_way.key, None)

    def _put(self, request_id: str, event: Event) -> None:
        self._outbox.put((Output(request_id, event),), self._engine.counters)


def _finish_before(request: EngineRequest) -> FinishReason | None:
    """What the tokens that were drawn elsewhere have ended with, if they have."""
    if request.first_position and request.prompt[-1] in request.stop_token_ids:
        return FinishReason.STOP
    return None if request.max_tokens else FinishReason.LENGTH


def _seed(seed: int | None) -> int:
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed
