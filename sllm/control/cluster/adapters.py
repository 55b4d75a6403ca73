"""Adapters: deployments whose requests are served by instances of another one, their base."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sllm import errors
from sllm.control.cluster.specs import (
    AUTO,
    Deployment,
    DeploymentSpec,
    EngineConfig,
    ModelInfo,
    ScalingPolicy,
)
from sllm.embedding.purpose import Task

_SHOWN: Final = 8
"""Names in a message."""


def validate_adapter(spec: DeploymentSpec) -> None:
    """Refuses what an adapter has no say in.

    Raises:
        errors.InvalidArgument: It asks for what its base decides, or is its own base.
    """
    if spec.base == spec.name:
        raise errors.InvalidArgument(f"{spec.name} cannot be its own base")
    engine, scaling = spec.engine, spec.scaling
    own = EngineConfig(engine=AUTO, dtype=engine.dtype, pack=engine.pack)
    if engine != own or scaling != ScalingPolicy(keep_alive=scaling.keep_alive):
        raise errors.InvalidArgument(
            f"{spec.name} is an adapter, whose requests instances of {spec.base} serve: of its "
            "engine it has dtype and pack, of its scaling keep_alive, and all else is its base's"
        )


def check_base(spec: DeploymentSpec, base: Deployment) -> None:
    """Refuses a base that takes no adapters.

    Raises:
        errors.UnsupportedAdapter: Says why.
    """
    if base.spec.base:
        raise errors.UnsupportedAdapter(
            f"{base.name} is an adapter itself: name its base {base.spec.base} as that of "
            f"{spec.name}"
        )
    if base.model.purpose.task is not Task.GENERATE:
        raise errors.UnsupportedAdapter(
            f"{base.name} is a model to {base.model.purpose.task} with; adapters are served over "
            "models that generate"
        )
    if not base.spec.engine.max_adapters:
        raise errors.UnsupportedAdapter(
            f"{base.name} takes no adapters: deploy it again with max_adapters, the number that "
            "one of its instances may have at once"
        )


def adapted(base: Deployment, found: ModelInfo) -> ModelInfo:
    """What an adapter's requests see: its base's model, with what is its own."""
    return replace(
        base.model,
        size_bytes=found.size_bytes,
        digest=found.digest,
        identity=found.identity,
        private_bytes=0,
        private_bytes_per_request=0,
        adapter=found.adapter,
    )


def check_still_fits(before: Deployment, base: Deployment, adapters: Iterable[Deployment]) -> None:
    """Refuses to change a base so that adapters over it would not be over it any more.

    Raises:
        errors.AdaptersLeft: Names them.
    """
    there = list(adapters)
    if base.model.identity != before.model.identity:
        _refuse(base, there, "would become another model")
    if not base.spec.engine.max_adapters:
        _refuse(base, there, "would take no adapters (max_adapters)")
    most = base.spec.engine.adapter_rank
    higher = [one for one in there if one.model.adapter and one.model.adapter.rank > most]
    _refuse(base, higher, f"would take adapters of rank {most} at most (max_adapter_rank)")


def does_not_fit(base: Deployment, adapter: str, error: errors.SllmError) -> errors.AdaptersLeft:
    """Why a base cannot come to run as it is to: an adapter over it cannot be served so."""
    return errors.AdaptersLeft(
        f"{base.name} would run on {base.spec.engine.engine}, where {adapter}, an adapter over it, "
        f"cannot be served: {error.message}; delete {adapter} first",
        metadata={"adapters": adapter},
    )


def check_none_left(base: str, adapters: Iterable[Deployment]) -> None:
    """Refuses to end a base while there are adapters over it.

    Raises:
        errors.AdaptersLeft: Names them.
    """
    _refuse_named(base, list(adapters), "would end")


def _refuse(base: Deployment, adapters: list[Deployment], what: str) -> None:
    _refuse_named(base.name, adapters, what)


def _refuse_named(base: str, adapters: list[Deployment], what: str) -> None:
    if not adapters:
        return
    names = sorted(one.name for one in adapters)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise errors.AdaptersLeft(
        f"{base} {what}, and there are adapters over it: {', '.join(names[:_SHOWN])}{more}; delete "
        "them first",
        metadata={"adapters": ",".join(names[:_SHOWN])},
    )
