"""`sllm up`: a whole cluster on this machine, each server a process of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sllm import bounds, config, errors
from sllm.cli.gateway import HTTP_PORT
from sllm.cli.guards import Guards
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.plan import Plan
from sllm.cli.servers import (
    Engines,
    KvCacheDram,
    KvCacheInt8,
    KvCacheSsd,
    LendLayers,
    MetricsPort,
    Migrate,
    NoEarlyStart,
    NoHugePages,
    NoPeers,
    NoReadyMade,
    PrivateSources,
    SourceList,
)
from sllm.cli.sizes import GIB, size_option
from sllm.cli.supervisor import LISTENING, Server
from sllm.process import keep_private, until_terminated

REPORT_SECONDS: Final = 60.0
READY_SECONDS: Final = 600.0
NODE_SERVICE: Final = "serverlessllm.v1.NodeService"
"""What a node calls serving on its health service once it can look at models."""
POLL_SECONDS: Final = 0.1


def up(
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where everything is kept.", show_default="~/.sllm")
    ] = None,
    dram: Annotated[
        int | None, size_option("Memory for weights.", "1GiB, or less of a small memory")
    ] = None,
    ssd: Annotated[int, size_option("Disk for checkpoints.", "16GiB")] = 16 * GIB,
    kv: Annotated[
        int | None,
        size_option("For KV caches at most.", "2GiB or less; what weights leave of devices"),
    ] = None,
    kv_cache_dram: KvCacheDram = 0,
    kv_cache_ssd: KvCacheSsd = 0,
    kv_cache_int8: KvCacheInt8 = False,
    port: Annotated[
        int,
        typer.Option(min=0, max=bounds.MAX_PORT, help="Port of the control plane; 0 takes any."),
    ] = 50051,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=bounds.MAX_PORT,
            help="Port of the HTTP gateway; 0 takes any.",
            show_default=f"{HTTP_PORT}, or another one if that is taken",
        ),
    ] = None,
    http: Annotated[bool, typer.Option(help="Run an HTTP gateway as well.")] = True,
    engines: Engines = None,
    no_ready_made: NoReadyMade = False,
    no_early_start: NoEarlyStart = False,
    no_peers: NoPeers = False,
    no_huge_pages: NoHugePages = False,
    sources: SourceList = None,
    allow_private_sources: PrivateSources = False,
    metrics_port: MetricsPort = None,
    migrate: Migrate = True,
    lend_layers: LendLayers = False,
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask callers for a key; an admin's is made.")
    ] = False,
    tls: Annotated[
        bool, typer.Option("--tls", help="The same, with certificates that are made as well.")
    ] = False,
) -> None:
    """Run a cluster on this machine, until Ctrl-C. Sizes are those of each node."""
    where = (directory or config.data_directory()).absolute()
    plan = Plan(
        directory=where,
        nodes=nodes,
        port=port,
        dram_bytes=dram,
        ssd_bytes=ssd,
        kv_bytes=kv,
        kv_cache_dram_bytes=kv_cache_dram,
        kv_cache_ssd_bytes=kv_cache_ssd,
        kv_cache_int8=kv_cache_int8,
        metrics_port=metrics_port,
        migrate=migrate,
        lend_layers=lend_layers,
        engines=engines,
        ready_made=not no_ready_made,
        early_starts=not no_early_start,
        peers=not no_peers,
        huge_pages=not no_huge_pages,
        sources=sources,
        private_sources=allow_private_sources,
        http=http,
        http_port=http_port,
        guards=Guards(where, tls=tls) if auth or tls else None,
    )
    with interrupts_end_it():  # until there is something to take down
        asyncio.run(_until_asked(plan))


async def _until_asked(plan: Plan) -> None:
    """Runs the cluster until SIGTERM or SIGINT, or until it cannot be brought up.

    Raises:
        errors.StartFailed: Why it cannot.
    """
    keep_private()
    asked = asyncio.create_task(until_terminated())
    running = asyncio.create_task(run(plan, _say))
    await asyncio.wait((asked, running), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def _say(line: str) -> None:
    """Tells whoever reads; the cluster goes on when nobody does any more."""
    with suppress(OSError):
        typer.echo(line)


async def run(plan: Plan, say: Callable[[str], None]) -> None:
    """Brings the cluster up and keeps it up until this is cancelled; then takes it down.

    Raises:
        errors.StartFailed: A server does not start, or not as a whole.
    """
    async with AsyncExitStack() as stack:
        await _guard(plan.guards)
        control = Server(plan.control(), say)
        stack.push_async_callback(control.stop)
        await control.start()
        peers = control.peers or control.address
        nodes = [Server(plan.node(i + 1, peers), say) for i in range(plan.nodes)]
        stack.push_async_callback(_together, [node.stop for node in nodes])
        await _together([node.start for node in nodes])
        keeping = await stack.enter_async_context(_kept([control, *nodes]))
        await _until_reported(control.address, plan)
        say(f"{LISTENING}{control.address}")
        parts: list[Awaitable[object]] = [keeping, _tell_ready(plan, nodes, say)]
        if plan.guards:
            say(plan.guards.told(control.address))
            parts.append(plan.guards.renew())
        if plan.http:
            door = Server(plan.gateway(peers), say)
            stack.push_async_callback(door.stop)
            parts.append(_keep_open(door, plan, say))
        await _all_of(parts)


async def _guard(guards: Guards | None) -> None:
    """Makes the files of what guards a cluster.

    Raises:
        errors.StartFailed: Why they cannot be.
    """
    if guards is None:
        return
    try:
        await asyncio.to_thread(guards.make)
    except (OSError, errors.InvalidArgument) as error:
        raise errors.StartFailed(f"no key or certificates can be made: {error}") from error


async def _tell_ready(plan: Plan, nodes: list[Server], say: Callable[[str], None]) -> None:
    await _until_ready(nodes, plan.guards)
    ready = "1 node is" if plan.nodes == 1 else f"{plan.nodes} nodes are"
    say(f"{ready} ready; files and logs are in {plan.directory}")


async def _keep_open(door: Server, plan: Plan, say: Callable[[str], None]) -> None:
    """Brings the gateway up and keeps it up. The cluster goes on without one that nobody asked for.

    Raises:
        errors.StartFailed: It does not start on the port that it was to have.
    """
    try:
        await door.start()
    except errors.StartFailed as error:
        if plan.http_port is not None:
            raise
        say(f"there is no HTTP gateway: {error.message}")
        return
    if plan.http_port is None and not door.address.endswith(f":{HTTP_PORT}"):
        say(f"port {HTTP_PORT} is taken: the HTTP gateway has another")
    say(f"http://{door.address} shows the cluster in a browser")
    say(f"http://{door.address}/v1 speaks OpenAI's protocol, http://{door.address} Anthropic's")
    await door.keep()


@asynccontextmanager
async def _kept(servers: list[Server]) -> AsyncIterator[asyncio.Future[list[None]]]:
    """Starts servers again that end; the future fails if that does."""
    keeping = asyncio.gather(*(server.keep() for server in servers))
    try:
        yield keeping
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def _all_of(parts: Sequence[Awaitable[object]]) -> None:
    """Waits for all of them; ends the others if one fails."""
    tasks = [asyncio.ensure_future(one) for one in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _together(actions: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    await asyncio.gather(*(action() for action in actions))


async def _until_reported(address: str, plan: Plan) -> None:
    """Waits until the control plane knows all nodes."""
    from sllm.client.aio import AsyncClient

    if plan.guards:
        connecting = plan.guards.client(address)
    else:  # in the clear and without a key, whatever the environment says of other clusters
        connecting = AsyncClient(address, api_key="", tls_ca="")
    try:
        async with asyncio.timeout(REPORT_SECONDS), connecting as client:
            while len(await client.nodes()) < plan.nodes:  # noqa: ASYNC110 - the event is in another process
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise errors.StartFailed(
            f"not all nodes reported to {address} within {REPORT_SECONDS:g} s"
        ) from error


async def _until_ready(nodes: list[Server], guards: Guards | None) -> None:
    """Waits until a deployment would be answered: until every node can look at a model."""
    from sllm import rpc

    dial = guards.to_nodes() if guards else rpc.channel
    for node in nodes:
        try:
            async with asyncio.timeout(READY_SECONDS):
                # Its address each time anew: a node that is started again has another.
                while not await rpc.is_serving(node.address, NODE_SERVICE, dial):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise errors.StartFailed(
                f"{node.name} cannot look at models within {READY_SECONDS:g} s; its log tells why"
            ) from error
