"""Inputs and documents, vectors and scores, between callers and the protocol's messages."""

from collections.abc import Sequence
from typing import TypeAlias

from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm.client.types import embeddings
from sllm.client.wire.events import receipt
from sllm.client.wire.requests import duration, fitting

Inputs: TypeAlias = str | Sequence[str] | Sequence[Sequence[int]]
Texts: TypeAlias = str | Sequence[str]


def embed(
    deployment: str,
    inputs: Inputs,
    *,
    normalize: bool | None,
    dimensions: int | None,
    truncate: bool,
    priority: int,
    keep_alive: float | None,
) -> pb.EmbedRequest:
    """What vectors are to be made of.

    Raises:
        errors.InvalidArgument: A value does not fit its field.
    """
    with fitting():
        return pb.EmbedRequest(
            deployment=deployment,
            inputs=[_input(one) for one in ([inputs] if isinstance(inputs, str) else inputs)],
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
            priority=priority,
            keep_alive=None if keep_alive is None else duration(keep_alive),
        )


def _input(one: str | Sequence[int]) -> pb.EmbedInput:
    if isinstance(one, str):
        return pb.EmbedInput(text=one)
    return pb.EmbedInput(token_ids=types_pb2.TokenIds(ids=one))


def score(
    deployment: str,
    queries: Texts | None,
    documents: Texts,
    *,
    raw: bool,
    truncate: bool,
    priority: int,
    keep_alive: float | None,
) -> pb.ScoreRequest:
    """What is to be scored.

    Raises:
        errors.InvalidArgument: A value does not fit its field.
    """
    with fitting():
        return pb.ScoreRequest(
            deployment=deployment,
            queries=_texts(queries or ()),
            documents=_texts(documents),
            raw=raw,
            truncate=truncate,
            priority=priority,
            keep_alive=None if keep_alive is None else duration(keep_alive),
        )


def _texts(texts: Texts) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def embedded(message: pb.EmbedResponse) -> embeddings.Embeddings:
    """Vectors as callers get them."""
    return embeddings.Embeddings(
        tuple(
            embeddings.Embedding(tuple(one.values), one.prompt_tokens, one.truncated)
            for one in message.embeddings
        ),
        receipt(message.receipt),
    )


def scored(message: pb.ScoreResponse) -> embeddings.Scores:
    """Scores as callers get them."""
    return embeddings.Scores(
        tuple(
            embeddings.Score(tuple(one.values), one.prompt_tokens, one.truncated)
            for one in message.scores
        ),
        receipt(message.receipt),
    )
