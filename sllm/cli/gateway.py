"""`sllm gateway`: an HTTP door, in this process."""

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sllm import bounds, config, errors
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.servers import Insecure, MetricsPort, Parent, Tls, run_server
from sllm.process import die_with_parent

if TYPE_CHECKING:
    from sllm.gateway.settings import GatewaySettings

HTTP_PORT: Final = 8000

Controls = Annotated[
    str,
    typer.Option(
        "--control",
        envvar=config.CONTROL_VARIABLE,
        help="host:port of the control plane; of several, with commas, the first that answers.",
    ),
]
Port = Annotated[
    int, typer.Option(min=0, max=bounds.MAX_PORT, help="Port to serve on; 0 takes any.")
]


def gateway(
    control: Controls = config.DEFAULT_CONTROL,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Port = HTTP_PORT,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="A name by which it may be called on this machine, such as a proxy's; repeatable.",
            show_default="localhost",
        ),
    ] = None,
    tls: Tls = None,
    https: Annotated[
        Path | None,
        typer.Option(
            help="Serve HTTPS, with the tls.crt and tls.key that are in here.", file_okay=False
        ),
    ] = None,
    metrics_port: MetricsPort = None,
    insecure: Insecure = False,
    zone: Annotated[str, typer.Option(help="Where it is, and its callers' requests are.")] = "",
    files: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Where files of batches are kept; gateways may share it.",
            show_default="a directory that goes with it",
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="host:port, instead of these two.", hidden=True)
    ] = None,
    parent: Parent = None,
) -> None:
    """Run an HTTP door: OpenAI's and Anthropic's protocols. There may be any number of them."""
    if parent is not None:
        die_with_parent(parent)
    with interrupts_end_it():
        from sllm.gateway.settings import GatewaySettings, addresses
    if listen is not None:
        host, port = _host_and_port(listen)
    controls = tuple(addresses(control))
    hosts = tuple(allow_host or ())
    settings = GatewaySettings(
        controls,
        host,
        port,
        allowed_hosts=hosts,
        tls=tls,
        https=https,
        metrics_port=metrics_port,
        insecure=insecure,
        zone=bounds.zone(zone, "--zone"),
        files_directory=files,
    )
    with interrupts_end_it():
        server = _server(settings)
    run_server(server)


def _server(settings: "GatewaySettings") -> Coroutine[Any, Any, None]:
    try:
        from sllm.gateway.server import serve
    except ModuleNotFoundError as error:
        raise errors.StartFailed(
            f"the gateway needs {error.name}: pip install 'sllm[gateway]'"
        ) from error
    return serve(settings)


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not (host and port.isdigit() and int(port) <= bounds.MAX_PORT):
        raise errors.InvalidArgument(f"cannot listen on {listen!r}: write host:port")
    return host.strip("[]"), int(port)
