"""The client as those use it who search and sort: vectors and scores of whole texts."""

import asyncio
import time
from typing import Final, TypeVar

import grpc

from sllm import errors
from sllm.client.base import BaseClient
from sllm.client.types.embeddings import Embeddings, Scores
from sllm.client.wire import embeddings
from sllm.client.wire.embeddings import Inputs, Texts

Request = TypeVar("Request")
Response = TypeVar("Response")

_RETRY_SECONDS: Final = 0.2


class EmbeddingClient(BaseClient):
    """The part of a client for models that embed or score."""

    async def embed(
        self,
        deployment: str,
        inputs: Inputs,
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = False,
        priority: int = 0,
        keep_alive: float | None = None,
        reattach: float = 30.0,
        timeout: float | None = None,
    ) -> Embeddings:
        """Vectors of texts, by a model that embeds.

        Args:
            deployment: name of the deployment.
            inputs: a text, texts, or token ids of each; at most 2,048.
            normalize: whether vectors have the length 1. None: as the model's files say.
            dimensions: give the first so many numbers of each vector, of models made for that.
                None: all.
            truncate: whether the end of what is longer than the model's context is left out.
            priority: as in `generate`.
            keep_alive: the same.
            reattach: seconds for which a control plane that is restarted is waited for, and asked
                again.
            timeout: seconds for all of it; None: as long as it takes.

        Raises:
            errors.NotServed: The model does not embed.
            errors.InvalidPrompt: An input is empty, or they are none or too many.
            errors.ContextExceeded: One is too long.
            errors.InvalidArgument: Vectors of so many dimensions cannot be had.
        """
        request = embeddings.embed(
            deployment,
            inputs,
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
            priority=priority,
            keep_alive=keep_alive,
        )
        answer = await self._asked(self._connection.embedding.Embed, request, reattach, timeout)
        return embeddings.embedded(answer)

    async def score(
        self,
        deployment: str,
        query: Texts | None,
        documents: Texts,
        *,
        raw: bool = False,
        truncate: bool = False,
        priority: int = 0,
        keep_alive: float | None = None,
        reattach: float = 30.0,
        timeout: float | None = None,
    ) -> Scores:
        """Scores of documents: by a model that scores, or by the cosines of one that embeds.

        Args:
            deployment: name of the deployment.
            query: that all documents are held against, or one for each. None: the model sees each
                document alone, as one that sorts texts does.
            documents: a text, or texts; at most 2,048.
            raw: the model's own numbers, without its activation.
            truncate: whether the end of a document is left out that is too long beside its query.
            priority: as in `generate`.
            keep_alive: the same.
            reattach: as in `embed`.
            timeout: the same.

        Raises:
            errors.NotServed: The model does not score.
            errors.InvalidPrompt: A text is empty, or queries and documents do not match.
            errors.ContextExceeded: A document with its query is too long.
        """
        request = embeddings.score(
            deployment,
            query,
            documents,
            raw=raw,
            truncate=truncate,
            priority=priority,
            keep_alive=keep_alive,
        )
        answer = await self._asked(self._connection.embedding.Score, request, reattach, timeout)
        return embeddings.scored(answer)

    async def _asked(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        reattach: float,
        timeout: float | None,
    ) -> Response:
        """The answer, for which a control plane that has gone down meanwhile is asked once more."""
        began, patience = time.monotonic(), None
        while True:
            left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
            try:
                return await self._connection.wait(method, request, left)
            except (errors.ShuttingDown, errors.Unreachable) as error:
                # Who cannot be reached at first may not be there at all: the caller is told.
                if patience is None and isinstance(error, errors.Unreachable):
                    raise
                patience = patience or time.monotonic() + reattach
                if time.monotonic() >= patience:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)
