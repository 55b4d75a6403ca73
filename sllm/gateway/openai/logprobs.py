"""Logprobs as OpenAI tells them: with the texts of tokens."""

from collections.abc import Sequence

import structlog
from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs

from sllm import TokenLogprob, errors
from sllm.gateway.token_texts import TokenTexts

log = structlog.get_logger()

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_LEAST = -9999.0
"""What clients know as no probability at all: JSON has no infinity."""


class Told:
    """Makes logprobs of one request's model readable."""

    def __init__(self, texts: TokenTexts, deployment: str, model: str | None) -> None:
        """`model`: None: it is gone, and there are numbers in the place of texts."""
        self._texts = texts
        self._deployment = deployment
        self._model = model

    async def chat(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> list[ChatCompletionTokenLogprob]:
        """One for each token.

        Raises:
            errors.SllmError: The deployment cannot be asked for their texts.
        """
        texts = await self._of(token_ids, logprobs)
        return [
            ChatCompletionTokenLogprob(
                token=texts[token],
                bytes=_bytes(texts[token]),
                logprob=_finite(told.logprob),
                top_logprobs=[
                    TopLogprob(
                        token=texts[one.token_id],
                        bytes=_bytes(texts[one.token_id]),
                        logprob=_finite(one.logprob),
                    )
                    for one in told.top
                ],
            )
            for token, told in zip(token_ids, logprobs, strict=True)
        ]

    async def completion(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], offset: int
    ) -> Logprobs:
        """The same in the older form; `offset`: letters of the text before them.

        Raises:
            errors.SllmError: The deployment cannot be asked for their texts.
        """
        texts = await self._of(token_ids, logprobs)
        offsets = []
        for token in token_ids:
            offsets.append(offset)
            offset += len(texts[token])
        return Logprobs(
            text_offset=offsets,
            token_logprobs=[_finite(one.logprob) for one in logprobs],
            tokens=[texts[token] for token in token_ids],
            top_logprobs=[
                {texts[top.token_id]: _finite(top.logprob) for top in one.top} for one in logprobs
            ],
        )

    async def _of(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> dict[int, str]:
        others = (top.token_id for one in logprobs for top in one.top)
        wanted = (*token_ids, *others)
        if self._model is None:
            return {one: f"token_id:{one}" for one in wanted}
        return await self._texts.of(self._deployment, self._model, wanted)


class ToldLater(Told):
    """The same of what is told when its model may be gone: nothing of it is lost by that."""

    async def _of(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> dict[int, str]:
        try:
            return await super()._of(token_ids, logprobs)
        except errors.SllmError as error:
            log.warning("gateway.no_token_texts", deployment=self._deployment, error=error.message)
            self._model = None
            return await super()._of(token_ids, logprobs)


def _bytes(text: str) -> list[int] | None:
    """Of a token that is a part of a character nobody knows them here."""
    return None if _UNREADABLE in text else list(text.encode())


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


async def told(texts: TokenTexts, deployment: str) -> Told:
    """For one request.

    Raises:
        errors.DeploymentNotFound: There is none of this name.
    """
    return Told(texts, deployment, await texts.model(deployment))


async def told_later(texts: TokenTexts, deployment: str, until: float) -> Told:
    """For results of a deployment as it was `until` then, in seconds since the epoch."""
    try:
        model = await texts.model(deployment, until)
    except errors.SllmError:
        model = None
    return ToldLater(texts, deployment, model)
