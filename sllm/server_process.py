"""What every server of a cluster does as a process, from its start to the signal that ends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sllm import telemetry
from sllm.process import leave_out_of_collections, until_terminated
from sllm.telemetry import MetricsDoor
from sllm.tls.cluster import ClusterTls


class ServerProcess:
    """A process that may be asked to end from now on. Belongs to the event loop."""

    def __init__(self) -> None:
        self._asked_to_end = asyncio.create_task(until_terminated())

    async def serve(self, *lines: str) -> None:
        """Tells whoever has started it where it serves, and returns when it is asked to end."""
        for line in lines:
            print(line, flush=True)  # noqa: T201 - for who started us
        leave_out_of_collections()
        await self._asked_to_end


@asynccontextmanager
async def server_process(
    service_name: str,
    instance_id: str,
    host: str,
    metrics_port: int | None,
    tls: ClusterTls | None,
    *,
    collects: bool = False,
) -> AsyncIterator[ServerProcess]:
    """Sets up a process for the server that runs within; see `telemetry.configure`.

    Args:
        service_name: as there.
        instance_id: the same.
        host: on which metrics are served.
        metrics_port: as there.
        tls: lets readers of metrics in. None: whoever reaches the port.
        collects: as there.
    """
    process = ServerProcess()  # before anybody knows that it is here
    door = tls.metrics_door(host) if tls else MetricsDoor(host)
    configured = telemetry.configure(
        service_name,
        instance_id=instance_id,
        metrics_port=metrics_port,
        metrics_door=door,
        collects=collects,
    )
    try:
        yield process
    finally:
        configured.shutdown()
