"""A deployment that is deployed again: what may change of it, and what is known of its model."""

from dataclasses import replace

from sllm import errors
from sllm.control.cluster.specs import Deployment, DeploymentSpec, ModelInfo


def deployed(
    present: Deployment | None, spec: DeploymentSpec, found: ModelInfo, now: float
) -> Deployment:
    """What a spec makes of the deployment of its name, or a new one where there is none.

    Args:
        present: as it is. None: there is none.
        spec: as it is to be.
        found: what the source is now.
        now: seconds since the epoch.

    Raises:
        errors.DeploymentExists: As `revise`.
    """
    return revise(present, spec, found) if present else Deployment(spec, found, created_at=now)


def revise(present: Deployment, spec: DeploymentSpec, found: ModelInfo) -> Deployment:
    """`present` with the policy of `spec`, which must name the same source.

    Args:
        present: as it is.
        spec: as it is to be.
        found: what the source is now. If that is another checkpoint, the deployment serves it from
            now on.

    Raises:
        errors.DeploymentExists: `spec` names another source.
    """
    check_source(present, spec)
    return replace(present, spec=spec, model=_revised_model(present, spec, found))


def _revised_model(present: Deployment, spec: DeploymentSpec, found: ModelInfo) -> ModelInfo:
    known = present.model
    if found.identity not in ("", known.identity):
        return found
    before, after = present.spec.engine, spec.engine
    same = (before.engine, before.tensor_parallel) == (after.engine, after.tensor_parallel)
    if found.private_bytes is None and same:
        return known
    return known.with_private_of(found)


def check_source(present: Deployment, spec: DeploymentSpec) -> None:
    """Makes sure that `spec` names the source that `present` does.

    Raises:
        errors.DeploymentExists: It names another one.
    """
    here, there = present.spec, spec
    if here.base != there.base:
        raise errors.DeploymentExists(
            f"deployment {spec.name} is {_kind(here)}, not {_kind(there)}; delete it first, or "
            "choose another name",
            metadata={"source": here.source},
        )
    if (here.source, here.engine.dtype) != (there.source, there.engine.dtype):
        raise errors.DeploymentExists(
            f"deployment {spec.name} serves {_checkpoint(here)}, not {_checkpoint(there)}; "
            "delete it first, or choose another name",
            metadata={"source": here.source},
        )


def _kind(spec: DeploymentSpec) -> str:
    return f"an adapter over {spec.base}" if spec.base else "a model of its own"


def _checkpoint(spec: DeploymentSpec) -> str:
    return f"{spec.source} as {spec.engine.dtype}" if spec.engine.dtype else spec.source
