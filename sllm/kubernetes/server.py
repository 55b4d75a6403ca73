"""The operator as a process."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import kopf

from sllm import AsyncClient, telemetry
from sllm.clock import MonotonicClock
from sllm.kubernetes.handlers import registry_of, settings
from sllm.kubernetes.reconciler import Reconciler


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Everything that `sllm operator` can be told, beside what clients read of the environment."""

    control_address: str
    """host:port of the control plane."""
    namespaces: Sequence[str]
    """Whose resources become deployments. Two of one name in several are the same deployment."""
    liveness_port: int | None = None
    """Port of /healthz. None: there is none."""


async def serve(config: OperatorConfig) -> None:
    """Runs the operator until the process gets SIGTERM or SIGINT.

    Raises:
        errors.InvalidArgument: The address is none.
    """
    configured = telemetry.configure("sllm-operator", instance_id="operator")
    port = config.liveness_port
    try:
        async with AsyncClient(config.control_address) as client:
            reconciler = Reconciler(client, MonotonicClock(), lambda: datetime.now(UTC))
            await kopf.operator(  # which ends by these signals itself
                registry=registry_of(reconciler),
                settings=settings(),
                namespaces=list(config.namespaces),
                standalone=True,
                liveness_endpoint=None if port is None else f"http://0.0.0.0:{port}/healthz",
            )
            await reconciler.close()
    finally:
        configured.shutdown()
