"""`sllm control` and `sllm node`: one server, in this process."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from sllm import bounds, config, errors, machine
from sllm.cli.common import Control
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.sizes import GIB, MIB, size_option
from sllm.process import die_with_parent

Listen = Annotated[str, typer.Option(help="host:port to serve on; port 0 takes any.")]
Directory = Annotated[Path | None, typer.Option("--dir", help="Where the server keeps its files.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=bounds.MAX_PORT, help="Serve Prometheus here; 0 takes any port."),
]
Migrate = Annotated[
    bool, typer.Option(help="Migrate running instances away where that makes room sooner.")
]
Engines = Annotated[
    str | None,
    typer.Option(
        help="vllm, transformers or both: what models run on, the preferred one first.",
        show_default="what is installed, vllm first",
    ),
]
NoReadyMade = Annotated[
    bool, typer.Option("--no-ready-made", help="Keep no weights as their engine reads them.")
]
Parent = Annotated[int | None, typer.Option(help="End with this process.", hidden=True)]


def control(
    listen: Listen = "127.0.0.1:50051",
    directory: Directory = None,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Requests that may wait, over all deployments.")
    ] = 10_000,
    max_queued_per_deployment: Annotated[
        int, typer.Option(min=1, help="Requests that may wait for one deployment.")
    ] = 1_000,
    migrate: Migrate = True,
    lease: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a silent node counts as lost.")
    ] = 3.0,
    metrics_port: MetricsPort = None,
    parent: Parent = None,
) -> None:
    """Run the control plane."""
    if parent is not None:
        die_with_parent(parent)
    with interrupts_end_it():
        from sllm.control.config import ControlConfig
        from sllm.control.server import serve

    run_server(
        serve(
            ControlConfig(
                directory=directory or config.data_directory() / "control",
                listen_address=listen,
                max_queued=max_queued,
                max_queued_per_deployment=max_queued_per_deployment,
                migrate=migrate,
                lease_seconds=lease,
                metrics_port=metrics_port,
            )
        )
    )


def node(
    control: Control = config.DEFAULT_CONTROL,
    listen: Listen = "127.0.0.1:0",
    advertise: Annotated[
        str | None, typer.Option(help="Host under which others reach this node.")
    ] = None,
    directory: Directory = None,
    memory: Annotated[
        int | None,
        size_option("All that the node may take.", "what the machine and its cgroup have"),
    ] = None,
    dram: Annotated[
        int | None, size_option("Of it, for weights.", "4GiB, or less of a small memory")
    ] = None,
    ssd: Annotated[int, size_option("Disk for checkpoints.", "64GiB")] = 64 * GIB,
    kv: Annotated[
        int | None,
        size_option(
            "Of it, for KV caches; or of each device.",
            "2GiB or less; what weights leave of devices",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:0,1 or auto: CUDA devices if there are any.")
    ] = "auto",
    device_reserve: Annotated[
        int, size_option("Of each device, what workers take beside.", "4GiB")
    ] = 4 * GIB,
    node_id: Annotated[
        str | None, typer.Option("--id", help="Name of the node; one is made and kept.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that read from disk.", show_default="4, or 2 of one CPU"),
    ] = None,
    fetch_threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads that read from sources, each with a chunk in hand.",
            show_default="8, or 4 of one CPU",
        ),
    ] = None,
    engines: Engines = None,
    ready_made: Annotated[
        int,
        size_option("Models so large are kept as their engine reads them as well.", "64MiB"),
    ] = 64 * MIB,
    no_ready_made: NoReadyMade = False,
    kernel_cache: Annotated[
        Path | None,
        typer.Option(
            help="Where engines keep compiled kernels; nodes may share it.",
            show_default="~/.cache",
            file_okay=False,
        ),
    ] = None,
    metrics_port: MetricsPort = None,
    parent: Parent = None,
) -> None:
    """Run the agent of one node."""
    if parent is not None:
        die_with_parent(parent)
    memory = machine.memory_bytes() if memory is None else memory
    with interrupts_end_it():
        from sllm.node.config import FETCH_THREADS, READ_THREADS, NodeConfig
        from sllm.node.server import serve
        from sllm.node.worker.backends.names import installed

    run_server(
        serve(
            NodeConfig(
                control_address=bounds.address(control, "--control"),
                directory=directory or config.data_directory() / "node",
                listen_address=listen,
                advertise_host=advertise,
                node_id=node_id,
                memory_bytes=memory,
                dram_bytes=dram,
                ssd_bytes=ssd,
                kv_bytes=kv,
                device=device,
                device_reserve_bytes=device_reserve,
                read_threads=threads or machine.threads(READ_THREADS),
                fetch_threads=fetch_threads or machine.threads(FETCH_THREADS),
                engines=_names(engines) if engines is not None else installed(),
                ready_made_bytes=None if no_ready_made else ready_made,
                kernel_cache=kernel_cache,
                metrics_port=metrics_port,
            )
        )
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


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
