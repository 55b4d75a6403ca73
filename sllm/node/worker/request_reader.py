"""What the engine is asked for a request: its prompt as tokens, and the rules that it follows."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from sllm import bounds
from sllm.errors import InvalidArgument, NotServed
from sllm.node.worker.adapters import Adapters
from sllm.node.worker.engine.adapters import Adapter
from sllm.node.worker.engine.interface import EngineRequest, FinishReason, TokenGrammar
from sllm.node.worker.generation import Completed, Generation, GenerationRequest
from sllm.node.worker.model import prompts, words
from sllm.node.worker.model.forced_calls import ForcedCalls
from sllm.node.worker.model.grammars import Grammars
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.parsing import OutputParser, Parsers
from sllm.node.worker.model.prompts import RenderedPrompt, TextPrompt, TokenPrompt
from sllm.node.worker.model.seeing import ImageReader, Seeing
from sllm.node.worker.model.texts import Texts
from sllm.prompt_size import check_size
from sllm.sampling import MAX_SEED


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What the tokenizer has made of a request."""

    prompt: tuple[int, ...]
    forbidden: tuple[tuple[int, ...], ...]
    grammar: TokenGrammar | None
    adapter: Adapter | None
    images: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request as it is begun."""

    engine: EngineRequest
    prompt: tuple[int, ...]
    """Token ids, without those of the generation that it goes on with."""
    generation: Generation
    """Follows its tokens."""
    ended: Completed | None
    """Its end, if its last token was given out before."""


class RequestReader:
    """Belongs to the event loop; what takes long runs in threads beside it."""

    def __init__(
        self,
        files: ModelFiles,
        texts: Texts,
        parsers: Parsers | None,
        context_tokens: int,
        adapters: Adapters | None,
        images: ImageReader | None,
    ) -> None:
        """Reads requests to one model.

        Args:
            files: the model's.
            texts: makes prompts of them.
            parsers: take answers apart. None: nothing does.
            context_tokens: what prompt and generation of a request may have together.
            adapters: those that requests may name. None: they may name none.
            images: reads those of prompts. None: they may have none.
        """
        self._files = files
        self._texts = texts
        self._parsers = parsers
        self._context_tokens = context_tokens
        self._adapters = adapters
        self._seeing = Seeing(images)
        self._grammars = Grammars(files.tokenizer, files.vocabulary_size, files.stop_token_ids)

    async def read(self, request: GenerationRequest, key: str, taken_at: float) -> ReadRequest:
        """What a request asks of the engine.

        Args:
            request: as its caller sent it.
            key: its id in the engine.
            taken_at: when the worker took it, by the monotonic clock.

        Raises:
            SllmError: it cannot be served so.
        """
        tokens = await self._encoded(request, key)
        engine_request = self._engine_request(request, tokens, key)
        generation, ended = await self._texts.run(
            prompts.LETTERS_PER_TOKEN * len(request.generated),  # made text again
            self._follow,
            request,
            tokens.prompt,
            taken_at,
            _finish_before(engine_request),
            tokens.grammar,
        )
        return ReadRequest(engine_request, tokens.prompt, generation, ended)

    def let_go(self, key: str) -> None:
        """A request has ended: what was made of its images may go.

        Args:
            key: its id in the engine.
        """
        self._seeing.let_go(key)

    def close(self) -> None:
        """Reads no more images."""
        self._seeing.close()

    def release(self) -> None:
        """Gives up what the engine's steps need; it has ended, after `close`."""
        self._grammars.close()

    async def _encoded(self, request: GenerationRequest, key: str) -> _Encoded:
        rendered = await self._texts.rendered(request.prompt)
        size = prompts.size_bytes(rendered)
        check_size(size, self._context_tokens)
        grammar, adapter = await self._grammar(request), self._adapter(request)
        tokens = await self._texts.run(size, self._encode, request, rendered, grammar, adapter)
        seen = await self._seeing.read(
            key,
            tokens.prompt,
            prompts.images(rendered),
            placed=isinstance(rendered, TokenPrompt),
        )
        return replace(tokens, prompt=seen.token_ids, images=seen.images)

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
    ) -> _Encoded:
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
        self, request: GenerationRequest, tokens: _Encoded, key: str
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
            images=tokens.images,
        )


def _finish_before(request: EngineRequest) -> FinishReason | None:
    """What the tokens that were drawn elsewhere have ended with, if they have."""
    if request.first_position and request.prompt[-1] in request.stop_token_ids:
        return FinishReason.STOP
    return None if request.max_tokens else FinishReason.LENGTH


def _seed(seed: int | None) -> int:
    return secrets.randbelow(MAX_SEED + 1) if seed is None else seed
