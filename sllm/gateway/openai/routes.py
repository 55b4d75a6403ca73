"""The routes of OpenAI's protocol."""

from collections.abc import Sequence
from typing import Final

from sllm.gateway.endpoint import Endpoint
from sllm.gateway.openai import chat, completions, embeddings, models, responses
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.completion_request import CompletionRequest
from sllm.gateway.openai.embeddings import EmbeddingRequest
from sllm.gateway.openai.response_request import ResponseRequest

ENDPOINTS: Final[Sequence[Endpoint]] = (
    Endpoint("GET", "/v1/models", models.listed, "Deployments."),
    Endpoint("GET", "/v1/models/{model}", models.one, "One deployment."),
    Endpoint("POST", "/v1/chat/completions", chat.complete, "Answers a conversation.", ChatRequest),
    Endpoint(
        "POST", "/v1/completions", completions.complete, "Goes on with texts.", CompletionRequest
    ),
    Endpoint(
        "POST",
        "/v1/responses",
        responses.respond,
        "Answers a conversation of which nothing is kept.",
        ResponseRequest,
        tell=responses.tell,
        event="error",
    ),
    Endpoint(
        "POST", "/v1/embeddings", embeddings.embed, "Makes vectors of texts.", EmbeddingRequest
    ),
)
