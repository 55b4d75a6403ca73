"""Requests of Embed and Score as they are queued, from and to the protocol's messages."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import grpc
from serverlessllm.v1 import embedding_service_pb2 as pb

from sllm import errors, prompt_size
from sllm.control.cluster.specs import Deployment
from sllm.control.wire.generations import GenerateRequest
from sllm.embedding import wire

if TYPE_CHECKING:  # it is in the stubs alone
    from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub

Request: TypeAlias = pb.EmbedRequest | pb.ScoreRequest
Response: TypeAlias = pb.EmbedResponse | pb.ScoreResponse
EmbedRequest: TypeAlias = pb.EmbedRequest
EmbedResponse: TypeAlias = pb.EmbedResponse
Question = TypeVar("Question", pb.EmbedRequest, pb.ScoreRequest)
Answer = TypeVar("Answer", pb.EmbedResponse, pb.ScoreResponse)
Method: TypeAlias = Callable[
    ["EmbeddingServiceAsyncStub"], grpc.aio.UnaryUnaryMultiCallable[Question, Answer]
]
"""Chooses what is asked of a node."""


def queued_as(request: Request, request_id: str) -> GenerateRequest:
    """What a request has in common with one of Generate: all that it takes to wait for its turn."""
    queued = GenerateRequest(
        deployment=request.deployment, request_id=request_id, priority=request.priority
    )
    if request.HasField("keep_alive"):
        queued.keep_alive.CopyFrom(request.keep_alive)
    return queued


def check(request: Request, deployment: Deployment) -> None:
    """Refuses what no instance of the deployment could answer.

    Raises:
        errors.NotServed: Its model does something else.
        errors.InvalidRequest: What is asked makes no sense.
        errors.ContextExceeded: A text is longer than the model's context can be.
    """
    purpose, name = deployment.model.purpose, deployment.name
    if isinstance(request, pb.EmbedRequest):
        wire.embed_ask(request).validate(purpose, name)
    else:
        wire.score_ask(request).validate(purpose, name)
    context = deployment.context_tokens
    for text in _uncut(request):
        prompt_size.check_size(len(text), context)
    if isinstance(request, pb.EmbedRequest) and not request.truncate:
        most = max(len(one.token_ids.ids) for one in request.inputs)
        if most > context:
            raise errors.ContextExceeded(
                f"an input has {most} tokens, and the model sees {context} of one at most: shorten "
                "it, or set truncate",
                metadata={"prompt_tokens": str(most), "context_tokens": str(context)},
            )


def prompt_tokens(answer: Response) -> int:
    """Tokens that the model has seen for an answer."""
    parts = answer.embeddings if isinstance(answer, pb.EmbedResponse) else answer.scores
    return sum(one.prompt_tokens for one in parts)


def _uncut(request: Request) -> Iterator[str]:
    """The texts whose end may not be left out."""
    if isinstance(request, pb.ScoreRequest):
        yield from request.queries
    if request.truncate:
        return
    if isinstance(request, pb.EmbedRequest):
        yield from (one.text for one in request.inputs)
    else:
        yield from request.documents
