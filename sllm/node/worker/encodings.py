"""All texts under way in a worker whose model embeds or scores."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ParamSpec, TypeVar

import torch

from sllm.embedding.asks import Answer, EmbedAsk, ScoreAsk
from sllm.embedding.purpose import Activation, Purpose, Task
from sllm.errors import SllmError
from sllm.node.worker.engine.encoder import Encodable, Encoder
from sllm.node.worker.model.cutting import Cut, Cutter, size_bytes
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.texts import Texts

P = ParamSpec("P")
Made = TypeVar("Made")

_NAME = "the deployment"


class Encodings:
    """Belongs to the event loop; what takes long runs in the threads of texts and encoder."""

    def __init__(
        self, files: ModelFiles, texts: Texts, encoder: Encoder, context_tokens: int
    ) -> None:
        """`context_tokens`: that the model sees of one text."""
        self._purpose: Purpose = files.architecture.use.purpose
        self._texts = texts
        self._encoder = encoder
        self._cutter = Cutter(files, context_tokens)
        self._waiting: set[asyncio.Future[torch.Tensor]] = set()

    async def embed(self, ask: EmbedAsk) -> list[Answer]:
        """The vectors of texts.

        Raises:
            SllmError: Why there are none.
        """
        ask.validate(self._purpose, _NAME)
        cuts = await self._cut(ask.inputs, "inputs", truncate=ask.truncate)
        found = await self._encode(cuts)
        normalize = self._purpose.normalizes if ask.normalize is None else ask.normalize
        return await self._off_loop(_vectors, cuts, found, ask.dimensions, normalize=normalize)

    async def score(self, ask: ScoreAsk) -> list[Answer]:
        """The scores of documents.

        Raises:
            SllmError: Why there are none.
        """
        ask.validate(self._purpose, _NAME)
        if self._purpose.task is Task.EMBED:
            return await self._compare(ask)
        if ask.queries:
            cuts = await self._texts.run(size_bytes(ask.documents), self._pairs, ask)
        else:
            cuts = await self._cut(ask.documents, "documents", truncate=ask.truncate)
        found = await self._encode(cuts)
        raw = Activation.NONE if ask.raw else Activation(self._purpose.activation)
        return await self._off_loop(_scores, cuts, found, raw)

    async def _compare(self, ask: ScoreAsk) -> list[Answer]:
        """By the cosines of vectors."""
        queries = await self._cut(ask.queries, "queries", truncate=ask.truncate)
        documents = await self._cut(ask.documents, "documents", truncate=ask.truncate)
        found = await self._encode([*queries, *documents])
        return await self._off_loop(_cosines, queries, documents, found)

    def fail_all(self, error: SllmError) -> None:
        """Ends all requests."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)

    def close(self) -> None:
        """Nothing to do: the encoder ends them as it stops."""

    def release(self) -> None:
        """Nothing to do."""

    async def _cut(
        self, texts: Sequence[str | Sequence[int]], what: str, *, truncate: bool
    ) -> list[Cut]:
        def cut() -> list[Cut]:
            return [
                self._cutter.one(text, f"{what}[{number}]", truncate=truncate)
                for number, text in enumerate(texts)
            ]

        return await self._texts.run(size_bytes(texts), cut)

    def _pairs(self, ask: ScoreAsk) -> list[Cut]:
        return [
            self._cutter.pair(query, document, f"documents[{number}]", truncate=ask.truncate)
            for number, (query, document) in enumerate(ask.pairs)
        ]

    async def _encode(self, cuts: Sequence[Cut]) -> torch.Tensor:
        """What the model makes of texts; the caller's leaving takes them out."""
        texts = [Encodable(cut.token_ids, cut.type_ids) for cut in cuts]
        waiting = asyncio.wrap_future(self._encoder.submit(texts))
        self._waiting.add(waiting)
        try:
            return await waiting
        finally:
            self._waiting.discard(waiting)

    def _off_loop(
        self, work: Callable[P, Made], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[Made]:
        return self._texts.run(0, work, *args, **kwargs)


def _vectors(
    cuts: Sequence[Cut], found: torch.Tensor, dimensions: int | None, *, normalize: bool
) -> list[Answer]:
    kept = found[:, :dimensions]
    return _answers(cuts, torch.nn.functional.normalize(kept) if normalize else kept)


def _scores(cuts: Sequence[Cut], found: torch.Tensor, activation: Activation) -> list[Answer]:
    match activation:
        case Activation.SIGMOID:
            return _answers(cuts, found.sigmoid())
        case Activation.SOFTMAX:
            return _answers(cuts, found.softmax(-1))
        case Activation.NONE:
            return _answers(cuts, found)


def _answers(cuts: Sequence[Cut], found: torch.Tensor) -> list[Answer]:
    return [
        Answer(values, len(cut.token_ids), cut.truncated)
        for cut, values in zip(cuts, found.tolist(), strict=True)
    ]


def _cosines(queries: Sequence[Cut], documents: Sequence[Cut], found: torch.Tensor) -> list[Answer]:
    """Of each document and its query, or the only one, whose tokens count with the first."""
    asked, told = found[: len(queries)], found[len(queries) :]
    cosines = torch.nn.functional.cosine_similarity(asked, told).tolist()
    single = len(queries) == 1
    return [
        Answer(
            (cosine,),
            len(document.token_ids) + (len(query.token_ids) if number < len(queries) else 0),
            document.truncated or query.truncated,
        )
        for number, (cosine, document) in enumerate(zip(cosines, documents, strict=True))
        for query in (queries[0 if single else number],)
    ]
