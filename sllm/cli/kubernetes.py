"""`sllm operator`: deployments as Kubernetes' resources, in this process."""

from typing import Annotated

import typer

from sllm import bounds, config
from sllm.cli.common import Control
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.servers import run_server


def operator(
    namespace: Annotated[
        list[str],
        typer.Option(help="Whose resources become deployments; repeatable.", show_default=False),
    ],
    control: Control = config.DEFAULT_CONTROL,
    liveness_port: Annotated[
        int | None,
        typer.Option(min=1, max=bounds.MAX_PORT, help="Serve /healthz here, over HTTP."),
    ] = None,
) -> None:
    """Run the operator: it makes deployments of ModelDeployments and Adapters."""
    with interrupts_end_it():
        from sllm.kubernetes.server import OperatorConfig, serve
    run_server(serve(OperatorConfig(control, tuple(namespace), liveness_port)))
