"""What there is, as OpenAPI tells it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from sllm.gateway.endpoint import Endpoint
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import encoded

_REFERENCES = "#/components/schemas/{model}"


def endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """The route that tells of others."""

    async def tell(exchange: Exchange) -> None:
        exchange.watch()
        await exchange.reply(encoded(described(endpoints)))

    return Endpoint("GET", "/openapi.json", tell, "What there is.")


def described(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """An OpenAPI document of routes."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sllm", "version": version("sllm")},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    names = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
    found: dict[str, Any] = {
        "summary": endpoint.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "responses": {
            "200": {"description": "The answer."},
            "default": {"description": "An error object; its code is the reason."},
        },
    }
    if endpoint.body:
        schema = endpoint.body.model_json_schema(ref_template=_REFERENCES)
        schemas.update(schema.pop("$defs", {}))
        schemas[endpoint.body.__name__] = schema
        reference = {"$ref": _REFERENCES.format(model=endpoint.body.__name__)}
        content = {"application/json": {"schema": reference}}
        found["requestBody"] = {"required": True, "content": content}
    return found
