"""What a model makes of text: its tokenizer and its chat template at work, off the event loop."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from sllm.chat.conversation import ChatMessage, Conversation, Tool
from sllm.errors import InvalidChatTemplate, InvalidPrompt
from sllm.node.worker.model import prompts
from sllm.node.worker.model.lanes import Lanes
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.prompts import Prompt, RenderedPrompt, TextPrompt, TokenPrompt
from sllm.node.worker.model.templates import render

Arguments = ParamSpec("Arguments")
Outcome = TypeVar("Outcome")

MAX_LETTERS: Final = 1 << 22
"""Of a text that nothing is generated from: what takes seconds to tokenize."""
_PROBE: Final = "sllm_probe"


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that stands for no text."""

    token_id: int
    text: str
    roles: tuple[str, ...]
    """What the tokenizer uses it for, such as "bos"."""


@dataclass(frozen=True, slots=True)
class TextModel:
    """What a model knows of text and conversations."""

    vocabulary_size: int
    """Token ids are less than this."""
    special_tokens: tuple[SpecialToken, ...]
    """In order of their ids."""
    stop_token_ids: tuple[int, ...]
    chat_template: str
    """In Jinja. Empty: it has none."""
    takes_tools: bool
    """Whether the template tells the model of tools."""


class Texts:
    """Belongs to the event loop; the work is done in a few threads, each thing in its turn."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._lanes = Lanes()
        # Chat templates have a thread of their own: one that takes long keeps no text waiting.
        self._rendering = ThreadPoolExecutor(1, "render")

    async def run(
        self,
        size_bytes: int,
        work: Callable[Arguments, Outcome],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Outcome:
        """Does work on a text of a size; see `Lanes`."""
        return await self._lanes.run(size_bytes, work, *args, **kwargs)

    async def rendered(self, prompt: Prompt) -> TextPrompt | TokenPrompt | RenderedPrompt:
        """A prompt, of a conversation what the model's chat template writes.

        Raises:
            InvalidPrompt: The template refuses the messages.
            NoChatTemplate: The model has none.
        """
        if not isinstance(prompt, Conversation):
            return prompt
        return await self._render(prompt)

    async def chat(self, conversation: Conversation) -> str:
        """What the chat template writes.

        Raises:
            InvalidPrompt: It is too long, or the template refuses the messages.
            NoChatTemplate: The model has none.
        """
        _check_length(conversation)
        _check_blind(conversation)
        return (await self._render(conversation)).text

    async def tokens(self, prompt: Prompt, *, add_special_tokens: bool) -> tuple[int, ...]:
        """A prompt's tokens, which may be none; special ones are added to texts alone.

        Raises:
            InvalidPrompt: It is too long, or the template refuses the messages.
            NoChatTemplate: The model has none.
        """
        _check_length(prompt)
        _check_blind(prompt)
        rendered = await self.rendered(prompt)
        if isinstance(rendered, TextPrompt) and not add_special_tokens:
            rendered = RenderedPrompt(rendered.text)
        size, tokenizer = prompts.size_bytes(rendered), self._files.tokenizer
        return await self.run(size, prompts.tokens, rendered, tokenizer)

    async def text(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens.

        Raises:
            InvalidPrompt: The model does not know one of them, or they are too many.
        """
        if len(token_ids) > MAX_LETTERS:
            raise InvalidPrompt(f"{len(token_ids)} tokens; {MAX_LETTERS} are taken at most")
        return await self.run(
            prompts.LETTERS_PER_TOKEN * len(token_ids),
            self._decode,
            token_ids,
            skip_special_tokens,
        )

    async def each(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token, as it is written after others; of those that `text` has taken."""
        size = 2 * prompts.LETTERS_PER_TOKEN * len(token_ids)
        return await self.run(size, self._decode_each, token_ids)

    def _decode_each(self, token_ids: Sequence[int]) -> list[str]:
        decode = self._files.tokenizer.backend_tokenizer.decode
        found = {}
        for one in set(token_ids):
            # The first token of a text may lose its space: the second one does not.
            first = decode([one], skip_special_tokens=False)
            found[one] = decode([one, one], skip_special_tokens=False)[len(first) :]
        return [found[one] for one in token_ids]

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        prompts.check_known(token_ids, self._files.vocabulary_size)
        decode = self._files.tokenizer.backend_tokenizer.decode
        text: str = decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    async def model(self, template: str = "") -> TextModel:
        """What there is to know of it, with a chat template in place of its own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._rendering, _describe, self._files, template)

    async def _render(self, conversation: Conversation) -> RenderedPrompt:
        loop, tokenizer = asyncio.get_running_loop(), self._files.tokenizer
        return await loop.run_in_executor(self._rendering, render, conversation, tokenizer)

    def close(self) -> None:
        """Takes no more, and drops what waits."""
        self._lanes.close()
        self._rendering.shutdown(wait=False, cancel_futures=True)


def _check_length(prompt: Prompt) -> None:
    letters = 0
    match prompt:
        case TextPrompt(text):
            letters = len(text)
        case Conversation():
            letters = prompt.letters
    if letters > MAX_LETTERS:
        raise InvalidPrompt(f"the text has {letters} letters; {MAX_LETTERS} are taken at most")


def _check_blind(prompt: Prompt) -> None:
    """What an image stands for in a prompt is known where the model runs, by `Started`."""
    if isinstance(prompt, Conversation) and prompt.images:
        raise InvalidPrompt(
            "images are seen by Generate alone, whose `started` has the prompt's tokens: leave "
            "them out here"
        )


def _describe(files: ModelFiles, template: str) -> TextModel:
    used = template or files.tokenizer.chat_template
    return TextModel(
        vocabulary_size=files.vocabulary_size,
        special_tokens=_special_tokens(files),
        stop_token_ids=tuple(sorted(files.stop_token_ids)),
        chat_template=_template_text(used),
        takes_tools=bool(used) and _takes_tools(files, template),
    )


def _template_text(template: object) -> str:
    """Of several, the one that is used where no other is named."""
    if isinstance(template, dict):
        template = template.get("default", "")
    return template if isinstance(template, str) else ""


def _special_tokens(files: ModelFiles) -> tuple[SpecialToken, ...]:
    named = files.tokenizer.special_tokens_map
    return tuple(
        SpecialToken(
            token_id,
            text,
            tuple(key.removesuffix("_token") for key, value in named.items() if value == text),
        )
        for token_id, text in sorted(files.vocabulary.special_tokens.items())
    )


def _takes_tools(files: ModelFiles, template: str) -> bool:
    """Whether a tool makes a difference to what the template writes: it is tried out."""
    asked = Conversation(
        messages=(ChatMessage("user", "Hi"),),
        tools=(Tool(_PROBE, "does nothing", ""),),
        template=template,
    )
    try:
        return _PROBE in render(asked, files.tokenizer).text
    except (InvalidPrompt, InvalidChatTemplate):
        return False
