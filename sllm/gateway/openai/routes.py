"""The routes of OpenAI's protocol."""

from collections.abc import Sequence
from typing import Final

from sllm.gateway.endpoint import Endpoint
from sllm.gateway.openai import batches, chat, completions, embeddings, files, models, responses
from sllm.gateway.openai.batches import BatchBody
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
    Endpoint("POST", "/v1/files", files.upload, "Takes a file."),
    Endpoint("GET", "/v1/files", files.listed, "All files."),
    Endpoint("GET", "/v1/files/{file}", files.one, "One file."),
    Endpoint("DELETE", "/v1/files/{file}", files.delete, "Forgets a file."),
    Endpoint("GET", "/v1/files/{file}/content", files.content, "What is in a file."),
    Endpoint("POST", "/v1/batches", batches.create, "Has many requests done.", BatchBody),
    Endpoint("GET", "/v1/batches", batches.listed, "All batches."),
    Endpoint("GET", "/v1/batches/{batch}", batches.one, "One batch."),
    Endpoint("POST", "/v1/batches/{batch}/cancel", batches.cancel, "Ends a batch."),
)
