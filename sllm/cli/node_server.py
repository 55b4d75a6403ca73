"""`sllm node`: the agent of one node, in this process."""

from pathlib import Path
from typing import Annotated

import typer

from sllm import bounds, config, machine
from sllm.cli.common import Control
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.servers import (
    Directory,
    Engines,
    Insecure,
    KvCacheDram,
    KvCacheInt8,
    KvCacheSsd,
    Listen,
    MetricsPort,
    NoEarlyStart,
    NoHugePages,
    NoPeers,
    NoReadyMade,
    Parent,
    PrivateSources,
    ProbePort,
    SourceList,
    Tls,
    run_server,
)
from sllm.cli.sizes import GIB, MIB, size_option
from sllm.process import die_with_parent


def node(
    control: Control = config.DEFAULT_CONTROL,
    listen: Listen = "127.0.0.1:0",
    advertise: Annotated[
        str | None, typer.Option(help="Host under which others reach this node.")
    ] = None,
    tls: Tls = None,
    insecure: Insecure = False,
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
    kv_cache_dram: KvCacheDram = 0,
    kv_cache_ssd: KvCacheSsd = 0,
    kv_cache_int8: KvCacheInt8 = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:0,1 or auto: CUDA devices if there are any.")
    ] = "auto",
    device_reserve: Annotated[
        int, size_option("Of each device, what workers take beside.", "4GiB")
    ] = 4 * GIB,
    node_id: Annotated[
        str | None, typer.Option("--id", help="Name of the node; one is made and kept.")
    ] = None,
    zone: Annotated[str, typer.Option(help="Part of the cluster that it is in.")] = "",
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
    no_early_start: NoEarlyStart = False,
    no_peers: NoPeers = False,
    no_huge_pages: NoHugePages = False,
    kernel_cache: Annotated[
        Path | None,
        typer.Option(
            help="Where engines keep compiled kernels; nodes may share it.",
            show_default="~/.cache",
            file_okay=False,
        ),
    ] = None,
    sources: SourceList = None,
    allow_private_sources: PrivateSources = False,
    leave: Annotated[
        float,
        typer.Option(min=0, help="Seconds for running requests to go on elsewhere, when it ends."),
    ] = 10.0,
    probe_port: ProbePort = None,
    metrics_port: MetricsPort = None,
    parent: Parent = None,
) -> None:
    """Run the agent of one node."""
    if parent is not None:
        die_with_parent(parent)
    memory = machine.memory_bytes() if memory is None else memory
    with interrupts_end_it():
        from sllm.checkpoint.sources.policy import SourcePolicy
        from sllm.checkpoint.sources.policy_file import read_policy_file
        from sllm.node.config import FETCH_THREADS, READ_THREADS, NodeConfig
        from sllm.node.server import serve
        from sllm.node.worker.backends.names import installed

    run_server(
        serve(
            NodeConfig(
                control_address=bounds.addresses(control, "--control"),
                directory=directory or config.data_directory() / "node",
                listen_address=listen,
                advertise_host=advertise,
                tls=tls,
                insecure=insecure,
                node_id=node_id,
                zone=zone,
                memory_bytes=memory,
                dram_bytes=dram,
                ssd_bytes=ssd,
                kv_bytes=kv,
                kv_cache_dram_bytes=kv_cache_dram,
                kv_cache_ssd_bytes=kv_cache_ssd,
                kv_cache_int8=kv_cache_int8,
                device=device,
                device_reserve_bytes=device_reserve,
                read_threads=threads or machine.threads(READ_THREADS),
                fetch_threads=fetch_threads or machine.threads(FETCH_THREADS),
                engines=_names(engines) if engines is not None else installed(),
                ready_made_bytes=None if no_ready_made else ready_made,
                early_starts=not no_early_start,
                peers=not no_peers,
                huge_pages=not no_huge_pages,
                kernel_cache=kernel_cache,
                leave_seconds=leave,
                sources=SourcePolicy(
                    None if sources is None else read_policy_file(sources), allow_private_sources
                ),
                probe_port=probe_port,
                metrics_port=metrics_port,
            )
        )
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
