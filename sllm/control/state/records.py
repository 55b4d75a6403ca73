"""Deployments and limits as text, in which form every store keeps them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sllm import errors
from sllm.control.cluster.specs import (
    AdapterInfo,
    Deployment,
    DeploymentSpec,
    EngineConfig,
    ModelInfo,
    ScalingPolicy,
)
from sllm.control.tenants.limits import Limits
from sllm.control.types.access import ApiKey, CallerRole
from sllm.embedding.purpose import GENERATES, Purpose


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Raises StartFailed for what makes no sense: to leave it out would end what it names."""
    try:
        yield
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise errors.StartFailed(
            f"{where} cannot be read: {type(error).__name__}: {error}; "
            "restore what was stored, or delete it there"
        ) from error


def to_json(value: DeploymentSpec | ModelInfo | Limits) -> str:
    """A part of a deployment, for `deployment`, or the limits of a tenant, for `limits`."""
    fields = dataclasses.asdict(value)
    if isinstance(value, Limits):  # an earlier version does not know all that there may be
        fields = {name: bound for name, bound in fields.items() if bound is not None}
    return json.dumps(fields)


def limits(text: str) -> Limits:
    """The limits of a tenant."""
    return Limits(**json.loads(text))


def api_key(key_id: str, digest: str, tenant: str, role: int, *rest: Any) -> ApiKey:
    """A key of its fields, in their order."""
    return ApiKey(key_id, digest, tenant, CallerRole(role), *rest)


def deployment(spec: str, model: str, created_at: float) -> Deployment:
    """The deployment of these parts."""
    fields: dict[str, Any] = json.loads(spec)
    engine, scaling = EngineConfig(**fields.pop("engine")), ScalingPolicy(**fields.pop("scaling"))
    hosts = tuple(fields.pop("image_hosts", ()))  # rows of earlier versions have none
    return Deployment(
        spec=DeploymentSpec(engine=engine, scaling=scaling, image_hosts=hosts, **fields),
        model=_model(json.loads(model)),
        created_at=created_at,
    )


def _model(fields: dict[str, Any]) -> ModelInfo:
    """Records of earlier versions say of no purpose, and of no adapter."""
    told = fields.pop("purpose", None)
    adapter = fields.pop("adapter", None)
    if adapter is not None:
        modules = tuple(adapter.pop("target_modules"))
        adapter = AdapterInfo(target_modules=modules, **adapter)
    purpose = Purpose.of(told) if told else GENERATES
    return ModelInfo(**fields, purpose=purpose, adapter=adapter)
