"""`sllm control`, and what commands share that are one server, in this process."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from sllm import bounds, config, errors, machine
from sllm.cli.durations import parse_duration
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.sizes import size_option
from sllm.process import die_with_parent

Listen = Annotated[str, typer.Option(help="host:port to serve on; port 0 takes any.")]
Directory = Annotated[Path | None, typer.Option("--dir", help="Where the server keeps its files.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=bounds.MAX_PORT, help="Serve Prometheus here; 0 takes any port."),
]
ProbePort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=bounds.MAX_PORT,
        help="Serve grpc.health.v1 alone here, without certificates, for a supervisor's probes.",
    ),
]
Migrate = Annotated[
    bool, typer.Option(help="Migrate running instances away where that makes room sooner.")
]
LendLayers = Annotated[
    bool,
    typer.Option(
        "--lend-layers",
        help="Have idle nodes compute layers for one that still reads their weights from disk.",
    ),
]
Engines = Annotated[
    str | None,
    typer.Option(
        help="vllm, transformers or both: what models run on, the preferred one first.",
        show_default="what is installed, vllm first",
    ),
]
KvCacheDram = Annotated[
    int, size_option("Of the memory for weights, for KV caches of prompts to come back.", "0")
]
KvCacheSsd = Annotated[int, size_option("Of the disk, the same.", "0")]
KvCacheInt8 = Annotated[
    bool, typer.Option(help="Keep them with 8 bits a number: half as large; tokens may differ.")
]
NoReadyMade = Annotated[
    bool, typer.Option("--no-ready-made", help="Keep no weights as their engine reads them.")
]
NoEarlyStart = Annotated[
    bool,
    typer.Option("--no-early-start", help="Take requests only when all weights are in memory."),
]
NoPeers = Annotated[
    bool,
    typer.Option("--no-peers", help="Fetch weights from their sources, never from other nodes."),
]
NoHugePages = Annotated[
    bool, typer.Option("--no-huge-pages", help="Keep weights in small pages of memory.")
]
SourceList = Annotated[
    Path | None,
    typer.Option(
        "--sources",
        help="File that lists the sources which may be read, and files of what opens them.",
        show_default="all may",
        dir_okay=False,
    ),
]
PrivateSources = Annotated[
    bool,
    typer.Option("--allow-private-sources", help="Fetch from web servers at private addresses."),
]
Tls = Annotated[
    Path | None,
    typer.Option(
        "--tls", help="Its tls.crt, tls.key and ca.crt; `sllm certs` makes them.", file_okay=False
    ),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without certificates.")
]
Parent = Annotated[int | None, typer.Option(help="End with this process.", hidden=True)]


Store = Annotated[
    str | None,
    typer.Option(
        help="sqlite:DIR, or etcd://HOST:PORT,… which several control planes share.",
        show_default="sqlite, in --dir",
    ),
]
EtcdCa = Annotated[
    Path | None,
    typer.Option(help="Certificates that etcd's are signed with.", show_default="no TLS"),
]
EtcdCert = Annotated[Path | None, typer.Option(help="Certificate to show to etcd.")]
EtcdKey = Annotated[Path | None, typer.Option(help="Its key.")]


def control(
    listen: Listen = "127.0.0.1:50051",
    peer_listen: Annotated[
        str | None,
        typer.Option(
            help="With --tls, host:port for nodes and gateways.",
            show_default="the port after --listen",
        ),
    ] = None,
    tls: Tls = None,
    insecure: Insecure = False,
    auth: Annotated[
        bool | None,
        typer.Option(
            "--auth/--no-auth",
            help="Ask callers for a key, or do not.",
            show_default="with --tls they are asked",
        ),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds an admin's key.",
            show_default="one is made in DIR/admin-key",
            dir_okay=False,
        ),
    ] = None,
    oidc_issuer: Annotated[
        str | None, typer.Option(help="URL of an issuer whose tokens are believed beside keys.")
    ] = None,
    oidc_audience: Annotated[str, typer.Option(help="Whom its tokens must be for.")] = "",
    oidc_tenant_claim: Annotated[str, typer.Option(help="Names the tenant.")] = "tenant",
    oidc_role_claim: Annotated[str, typer.Option(help="Names the role.")] = "role",
    directory: Directory = None,
    store: Store = None,
    advertise: Annotated[
        str | None, typer.Option(help="Host under which other control planes reach this one.")
    ] = None,
    etcd_ca: EtcdCa = None,
    etcd_cert: EtcdCert = None,
    etcd_key: EtcdKey = None,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Requests that may wait, over all deployments.")
    ] = 10_000,
    max_queued_per_deployment: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for one deployment.")
    ] = 1_000,
    migrate: Migrate = True,
    lend_layers: LendLayers = False,
    zone_link: Annotated[
        list[str] | None,
        typer.Option(
            help="What the way between two zones costs a request, such as edge:cloud=40ms; may be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    learn_keep_alive: Annotated[
        bool,
        typer.Option(
            "--learn-keep-alive/--fixed-keep-alive",
            help="End idle instances sooner than their keep-alive where that is not worth its "
            "memory, by the pauses between requests; deployments may say otherwise.",
        ),
    ] = False,
    idle_worth: Annotated[
        float,
        typer.Option(
            min=0.001, help="Seconds of an idle whole node that a second of waiting is worth."
        ),
    ] = 60.0,
    no_peers: NoPeers = False,
    lease: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a silent node counts as lost.")
    ] = 3.0,
    probe_port: ProbePort = None,
    metrics_port: MetricsPort = None,
    parent: Parent = None,
) -> None:
    """Run the control plane."""
    if parent is not None:
        die_with_parent(parent)
    with interrupts_end_it():
        from sllm.control.config import ControlConfig, EtcdConfig, OidcConfig, TlsFiles, store_at
        from sllm.control.server import serve

    oidc = None
    if oidc_issuer is not None:
        oidc = OidcConfig(oidc_issuer, oidc_audience, oidc_tenant_claim, oidc_role_claim)
        oidc.check()
    at = store_at(store, TlsFiles(etcd_ca, etcd_cert, etcd_key)) if store is not None else None
    etcd = at if isinstance(at, EtcdConfig) else None
    kept = at if isinstance(at, Path) else directory
    run_server(
        serve(
            ControlConfig(
                directory=kept or config.data_directory() / "control",
                listen_address=listen,
                etcd=etcd,
                advertise_host=advertise,
                peer_listen_address=peer_listen,
                tls=tls,
                insecure=insecure,
                auth=auth,
                admin_key_file=admin_key_file,
                oidc=oidc,
                max_queued=max_queued,
                max_queued_per_deployment=max_queued_per_deployment,
                migrate=migrate,
                lend_layers=lend_layers,
                zone_links=tuple(map(_zone_link, zone_link or ())),
                learn_keep_alive=learn_keep_alive,
                idle_worth_seconds=idle_worth,
                peers=not no_peers,
                lease_seconds=lease,
                probe_port=probe_port,
                metrics_port=metrics_port,
            )
        )
    )


def _zone_link(text: str) -> tuple[str, str, float]:
    """Two zones and seconds, of `a:b=40ms`."""
    names, _, cost = text.partition("=")
    first, _, second = names.partition(":")
    if not (cost and second):
        raise errors.InvalidArgument(f"--zone-link {text!r}: write it like edge:cloud=40ms")
    return first.strip(), second.strip(), parse_duration(cost)


async def _with_threads(server: Coroutine[Any, Any, None]) -> None:
    """Runs a server with as many threads beside the loop as Python has, of the usable processors.

    By itself it counts all of the machine.
    """
    threads = ThreadPoolExecutor(min(32, machine.processors() + 4), "beside-loop")
    asyncio.get_running_loop().set_default_executor(threads)
    await server


def run_server(server: Coroutine[Any, Any, None]) -> None:
    """Runs a server to its end.

    Raises:
        errors.StartFailed: It cannot have a file or port that it needs.
    """
    import uvloop

    try:
        with interrupts_end_it():  # until the server has handlers of its own
            uvloop.run(_with_threads(server))
    except OSError as error:
        raise errors.StartFailed(
            f"the server cannot run: {error}; --dir says where it keeps its files, --metrics-port "
            "where it serves metrics"
        ) from error
