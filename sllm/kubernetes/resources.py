"""What resources ask for, and what they are told: between Kubernetes' words and the client's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from sllm import DeploymentState, errors
from sllm.client.types.deployments import Deployment

GROUP: Final = "serverlessllm.io"
VERSION: Final = "v1alpha1"
MODEL_DEPLOYMENTS: Final = "modeldeployments"
ADAPTERS: Final = "adapters"

Json = Mapping[str, Any]

_ARGUMENTS: Final = {
    "source": "source",
    "engine": "engine",
    "dtype": "dtype",
    "pack": "pack",
    "kvCacheTokens": "kv_cache_tokens",
    "maxConcurrency": "max_concurrency",
    "tensorParallel": "tensor_parallel",
    "expertMemoryBytes": "expert_memory",
    "toolParser": "tool_parser",
    "reasoningParser": "reasoning_parser",
    "chatTemplate": "chat_template",
    "imageHosts": "image_hosts",
    "maxAdapters": "max_adapters",
    "maxAdapterRank": "max_adapter_rank",
    "base": "base",
    "keepAliveSeconds": "keep_alive",
}
"""Fields of a spec, by the arguments of `AsyncClient.deploy`."""
_SCALING: Final = {
    "minReplicas": "min_replicas",
    "maxReplicas": "max_replicas",
    "keepAliveSeconds": "keep_alive",
    "targetConcurrency": "target_concurrency",
    "learnKeepAlive": "learn_keep_alive",
    "targetSecondsPerToken": "target_time_per_token",
}
"""The same of `spec.scaling`."""
_MESSAGE_LETTERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Resource:
    """A ModelDeployment or an Adapter, as it was seen last."""

    namespace: str
    name: str
    """The deployment's as well."""
    generation: int
    """Of its spec: another one with each change."""
    spec: Json
    status: Json
    """What it was told last; empty at first."""

    @property
    def is_deployed(self) -> bool:
        """Whether the cluster has a deployment because of it."""
        return bool(self.status.get("deployed"))

    def arguments(self) -> dict[str, Any]:
        """What `AsyncClient.deploy` is called with, beside its name."""
        scaling = self.spec.get("scaling") or {}
        return {
            **{_ARGUMENTS[key]: value for key, value in self.spec.items() if key in _ARGUMENTS},
            **{_SCALING[key]: value for key, value in scaling.items() if key in _SCALING},
        }


def is_of(resource: Resource, deployment: Deployment) -> bool:
    """Whether a deployment is of what a resource names, which cannot change while it is there."""
    source, dtype, base = (resource.spec.get(key) or "" for key in ("source", "dtype", "base"))
    same = source in (deployment.source, _path(deployment.source))
    return same and (dtype, base) == (deployment.dtype, deployment.base)


def _path(source: str) -> str:
    """A file's URL as the path by which a resource may name it; another stays as it is."""
    url = urlsplit(source)
    return unquote(url.path) if url.scheme == "file" else source


def told(resource: Resource, deployment: Deployment, now: str) -> dict[str, Any]:
    """The status of a resource whose deployment is there.

    Args:
        resource: with the status that it has.
        deployment: as the control plane has it.
        now: the time, as Kubernetes writes it.
    """
    available = deployment.state is DeploymentState.AVAILABLE
    reason = deployment.state.name.capitalize()
    conditions = (
        ("Accepted", "True", "Deployed", "The control plane has taken it."),
        ("Available", str(available), reason, deployment.message or _said(deployment)),
    )
    return {
        "observedGeneration": resource.generation,
        "deployed": True,
        "state": deployment.state.name,
        "message": deployment.message,
        "engine": deployment.engine,
        "readyInstances": deployment.ready_instances,
        "queuedRequests": deployment.queued_requests,
        "conditions": _conditions(resource, conditions, now),
    }


def refused(resource: Resource, error: errors.SllmError, now: str) -> dict[str, Any]:
    """The status of a resource that the control plane does not take, or cannot be asked to."""
    message = error.message[:_MESSAGE_LETTERS]
    unasked = isinstance(error, errors.Unavailable | errors.DeadlineExceeded)
    status = {**resource.status, "deployed": resource.is_deployed, "message": message}
    if resource.is_deployed and unasked:
        return status  # what is there goes on meanwhile
    accepted = ("Accepted", "False", _camel(error.reason), message)
    available = ("Available", "Unknown", _camel(error.reason), message)
    conditions = (accepted,) if resource.is_deployed else (accepted, available)
    if not resource.is_deployed:
        status["state"] = "PENDING" if unasked else "REFUSED"
    return {
        **status,
        "observedGeneration": resource.generation,
        "conditions": _conditions(resource, conditions, now),
    }


def _said(deployment: Deployment) -> str:
    if deployment.state is DeploymentState.AVAILABLE:
        return "A node holds its checkpoint."
    return "Its checkpoint is on its way to a node."


def _camel(reason: str) -> str:
    """A reason as Kubernetes writes them: SourceNotFound."""
    return "".join(word.capitalize() for word in reason.split("_"))


def _conditions(
    resource: Resource, found: Sequence[tuple[str, str, str, str]], now: str
) -> list[dict[str, Any]]:
    """Conditions, each with the time at which its status was another one last."""
    before = {one["type"]: one for one in resource.status.get("conditions", ())}
    made = {
        kind: {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": resource.generation,
            "lastTransitionTime": before[kind]["lastTransitionTime"]
            if kind in before and before[kind]["status"] == status
            else now,
        }
        for kind, status, reason, message in found
    }
    return [*{**before, **made}.values()]
