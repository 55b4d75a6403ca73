"""What models are for, and what is asked of them, from and to the protocol's messages."""

from collections.abc import Iterable, Sequence
from typing import Final

from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm.embedding.asks import Answer, EmbedAsk, ScoreAsk
from sllm.embedding.purpose import Purpose, Task

_TASKS: Final = {
    types_pb2.MODEL_TASK_UNSPECIFIED: Task.GENERATE,
    types_pb2.MODEL_TASK_GENERATE: Task.GENERATE,
    types_pb2.MODEL_TASK_EMBED: Task.EMBED,
    types_pb2.MODEL_TASK_SCORE: Task.SCORE,
}
_NAMED: Final = {task: number for number, task in _TASKS.items()}


def purpose(message: types_pb2.ModelPurpose) -> Purpose:
    """What a model is for; one that is for something of a later version is taken to generate."""
    return Purpose(
        task=_TASKS.get(message.task, Task.GENERATE),
        dimensions=message.dimensions,
        pooling=message.pooling,
        normalizes=message.normalizes,
        matryoshka=message.matryoshka,
        matryoshka_dimensions=tuple(message.matryoshka_dimensions),
        labels=tuple(message.labels),
        activation=message.activation,
        takes_images=message.takes_images,
    )


def purpose_message(one: Purpose) -> types_pb2.ModelPurpose:
    """The same as a message."""
    return types_pb2.ModelPurpose(
        task=_NAMED[one.task],
        dimensions=one.dimensions,
        pooling=one.pooling,
        normalizes=one.normalizes,
        matryoshka=one.matryoshka,
        matryoshka_dimensions=one.matryoshka_dimensions,
        labels=one.labels,
        activation=one.activation,
        takes_images=one.takes_images,
    )


def embed_ask(request: pb.EmbedRequest) -> EmbedAsk:
    """What an Embed call asks for, not checked."""
    return EmbedAsk(
        inputs=tuple(map(_input, request.inputs)),
        normalize=request.normalize if request.HasField("normalize") else None,
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        truncate=request.truncate,
    )


def _input(message: pb.EmbedInput) -> str | Sequence[int]:
    """Tokens stay where they are: there may be millions."""
    return message.token_ids.ids if message.HasField("token_ids") else message.text


def score_ask(request: pb.ScoreRequest) -> ScoreAsk:
    """What a Score call asks for, not checked."""
    return ScoreAsk(
        queries=tuple(request.queries),
        documents=tuple(request.documents),
        raw=request.raw,
        truncate=request.truncate,
    )


def embed_response(answers: Iterable[Answer]) -> pb.EmbedResponse:
    """Vectors as a message."""
    return pb.EmbedResponse(
        embeddings=[
            pb.Embedding(
                values=one.values, prompt_tokens=one.prompt_tokens, truncated=one.truncated
            )
            for one in answers
        ]
    )


def score_response(answers: Iterable[Answer]) -> pb.ScoreResponse:
    """Scores as a message."""
    return pb.ScoreResponse(
        scores=[
            pb.Score(values=one.values, prompt_tokens=one.prompt_tokens, truncated=one.truncated)
            for one in answers
        ]
    )
