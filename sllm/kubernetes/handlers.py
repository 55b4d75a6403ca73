"""The reconciler behind kopf, which watches resources, keeps finalizers and writes status."""

from typing import Any, Final

import kopf

from sllm import errors
from sllm.kubernetes.reconciler import Reconciler
from sllm.kubernetes.resources import ADAPTERS, GROUP, MODEL_DEPLOYMENTS, VERSION, Resource

_LOOK_SECONDS: Final = 2.0
"""Between two looks at what a deployment's watch has told, and at what is to be tried again."""
_REMOVE_SECONDS: Final = 5.0
"""Between two tries to end a deployment."""


def registry_of(reconciler: Reconciler) -> kopf.OperatorRegistry:
    """What kopf is to do with resources."""
    registry = kopf.OperatorRegistry()

    async def bring(**seen: Any) -> None:
        status = await reconciler.bring(_resource(seen))
        changed = {key: one for key, one in status.items() if seen["status"].get(key) != one}
        if changed:  # or every look would be a write
            seen["patch"].status.update(changed)

    async def remove(**seen: Any) -> None:
        try:
            await reconciler.remove(_resource(seen))
        except errors.SllmError as error:
            raise kopf.TemporaryError(error.message, delay=_REMOVE_SECONDS) from error

    async def log_in(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(
            **arguments
        )

    kopf.on.login(registry=registry)(log_in)
    for plural in (MODEL_DEPLOYMENTS, ADAPTERS):
        where = (GROUP, VERSION, plural)
        kopf.on.resume(*where, registry=registry, id="bring")(bring)
        kopf.on.create(*where, registry=registry, id="bring")(bring)
        kopf.on.update(*where, registry=registry, id="bring", field="spec")(bring)
        kopf.on.delete(*where, registry=registry, id="remove")(remove)
        kopf.timer(
            *where,
            registry=registry,
            id="look",
            interval=_LOOK_SECONDS,
            initial_delay=_LOOK_SECONDS,
        )(bring)
    return registry


def settings() -> kopf.OperatorSettings:
    """Where kopf keeps what it has to know: in annotations, since the status is ours."""
    made = kopf.OperatorSettings()
    made.persistence.finalizer = f"{GROUP}/deployment"
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    made.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    made.scanning.disabled = True  # it may see its namespace, and nothing of the whole cluster
    made.posting.enabled = False  # conditions say it
    return made


def _resource(seen: dict[str, Any]) -> Resource:
    return Resource(
        namespace=seen["namespace"] or "",
        name=seen["name"],
        generation=seen["meta"].get("generation", 0),
        spec=dict(seen["spec"]),
        status=dict(seen["status"]),
    )
