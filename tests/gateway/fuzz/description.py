"""What schemathesis makes requests of: our own description, and the protocols' own types."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming as ChatParams,
)
from openai.types.completion_create_params import (
    CompletionCreateParamsNonStreaming as CompletionParams,
)
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

MODEL: Final = "tiny"
"""Name of the deployment that the requests are for."""

_THEIRS: Final[Mapping[str, Any]] = {
    "/v1/chat/completions": ChatParams,
    "/v1/completions": CompletionParams,
    "/v1/responses": ResponseCreateParamsNonStreaming,
    "/v1/embeddings": EmbeddingCreateParams,
    "/v1/messages": MessageCreateParamsNonStreaming,
    "/v1/messages/count_tokens": MessageCountTokensParams,
}
"""What the official clients may send."""


def described(url: str) -> dict[str, Any]:
    """The description of the gateway at `url`, whose requests are for a model that is there."""
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        found: dict[str, Any] = json.load(answer)
    schemas = found["components"]["schemas"]
    for path, kind in _THEIRS.items():
        content = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        content["schema"] = {"anyOf": [content["schema"], _theirs(path, kind, schemas)]}
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"const": MODEL}
    return found


def _theirs(path: str, kind: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; what it consists of is put beside the others, by names of its own."""
    prefix = path.strip("/").replace("/", "-")
    reference = f"#/components/schemas/{prefix}.{{model}}"
    schema = TypeAdapter(kind).json_schema(ref_template=reference)
    for name, inner in schema.pop("$defs", {}).items():
        schemas[f"{prefix}.{name}"] = inner
    schemas[prefix] = schema
    return {"$ref": f"#/components/schemas/{prefix}"}
