"""GET /v1/models: deployments, by the name that OpenAI's clients know them by."""

from typing import Any

from openai.types import Model

from sllm import Deployment, DeploymentState
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import encoded


def model(deployment: Deployment) -> Model:
    """A deployment as a model."""
    more: Any = {
        "max_model_len": deployment.model.context_tokens,
        "sllm": {
            "state": deployment.state,
            "engine": deployment.engine,
            "source": deployment.source,
            "ready_instances": deployment.ready_instances,
            "queued_requests": deployment.queued_requests,
        },
    }
    return Model(
        id=deployment.name,
        created=int(deployment.created_at),
        object="model",
        owned_by="sllm",
        **more,
    )


async def listed(exchange: Exchange) -> None:
    """All that can be asked."""
    exchange.watch()
    found = await exchange.gateway.planes.ask(lambda client: client.deployments())
    models = [model(one) for one in found if one.state is not DeploymentState.FAILED]
    data = [one.model_dump(exclude_unset=True) for one in models]
    await exchange.reply(encoded({"object": "list", "data": data}))


async def one(exchange: Exchange) -> None:
    """One of them."""
    exchange.watch()
    name = exchange.path_params["model"]
    found = await exchange.gateway.planes.ask(lambda client: client.deployment(name))
    await exchange.reply(encoded(model(found).model_dump(exclude_unset=True)))
