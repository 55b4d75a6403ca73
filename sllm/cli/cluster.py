"""`sllm up`: a whole cluster on this machine, each server a process of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sllm import bounds, config, errors, machine
from sllm.cli.common import connect_here
from sllm.cli.gateway import HTTP_PORT
from sllm.cli.interrupts import interrupts_end_it
from sllm.cli.servers import Engines, MetricsPort, Migrate, NoReadyMade
from sllm.cli.sizes import GIB, size_option
from sllm.cli.supervisor import LISTENING, Command, Server
from sllm.process import keep_private, until_terminated

REPORT_SECONDS: Final = 60.0
READY_SECONDS: Final = 600.0
NODE_SERVICE: Final = "serverlessllm.v1.NodeService"
"""What a node calls serving on its health service once it can look at models."""
POLL_SECONDS: Final = 0.1
CONTROL_BYTES: Final = 128 * 1024**2
"""What the control plane (46 MiB, and more with requests) and this process (36 MiB) take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `sllm up` brings up."""

    directory: Path
    """Where all servers keep their files and logs."""
    nodes: int
    """How many nodes."""
    port: int
    """Port of the control plane; 0 takes any that is free."""
    dram_bytes: int | None
    """Each node's memory for weights. None: 1 GiB, or a quarter of what it may take altogether."""
    ssd_bytes: int
    """Each node's disk for checkpoints."""
    kv_bytes: int | None
    """Each node's memory for KV caches."""
    metrics_port: int | None
    """Prometheus port of the control plane; the nodes have those after it. 0: any, for all."""
    migrate: bool = True
    """Whether running instances are migrated away where that makes room sooner."""
    memory_bytes: int = field(default_factory=machine.memory_bytes)
    """What all of them may take together."""
    engines: str | None = None
    """What models run on at each node, the preferred one first. None: what is installed."""
    ready_made: bool = True
    """Whether nodes keep weights as their engines read them."""
    http: bool = True
    """Whether there is an HTTP gateway."""
    http_port: int | None = None
    """Its port. None: 8000 or, if that is taken, another; the cluster is up without it as well."""

    def control(self) -> Command:
        """The control plane."""
        migrate = () if self.migrate else ("--no-migrate",)
        return Command(
            name="control",
            arguments=("control", *migrate, *self._common("control", 0)),
            listen=f"127.0.0.1:{self.port}",
            log=self._log("control"),
            keeps_address=True,
        )

    def gateway(self, control_address: str) -> Command:
        """The HTTP gateway."""
        port = self.http_port
        if port is None:
            port = HTTP_PORT if _is_free(HTTP_PORT) else 0
        return Command(
            name="gateway",
            arguments=("gateway", "--control", control_address, *self._common("gateway", 0)[:2]),
            listen=f"127.0.0.1:{port}",
            log=self._log("gateway"),
            keeps_address=True,
        )

    def node(self, number: int, control_address: str) -> Command:
        """The node of this number, counted from 1."""
        name = f"node-{number}"
        memory = (self.memory_bytes - CONTROL_BYTES) // self.nodes
        dram = min(GIB, memory // 4) if self.dram_bytes is None else self.dram_bytes
        options = {
            "memory": memory,
            "dram": dram,
            "ssd": self.ssd_bytes,
            "kv": self.kv_bytes,
            "engines": self.engines,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        if not self.ready_made:
            given.append("--no-ready-made")
        arguments = ("node", "--control", control_address, "--id", name, *given)
        return Command(
            name=name,
            arguments=(*arguments, *self._common(name, number)),
            listen="127.0.0.1:0",
            log=self._log(name),
        )

    def _common(self, name: str, number: int) -> tuple[str, ...]:
        directory = ("--dir", str(self.directory / name))
        if self.metrics_port is None:
            return directory
        port = self.metrics_port + number if self.metrics_port else 0
        return (*directory, "--metrics-port", str(port))

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers bind
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


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
    metrics_port: MetricsPort = None,
    migrate: Migrate = True,
) -> None:
    """Run a cluster on this machine, until Ctrl-C. Sizes are those of each node."""
    plan = Plan(
        directory=(directory or config.data_directory()).absolute(),
        nodes=nodes,
        port=port,
        dram_bytes=dram,
        ssd_bytes=ssd,
        kv_bytes=kv,
        metrics_port=metrics_port,
        migrate=migrate,
        engines=engines,
        ready_made=not no_ready_made,
        http=http,
        http_port=http_port,
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
        control = Server(plan.control(), say)
        stack.push_async_callback(control.stop)
        await control.start()
        nodes = [Server(plan.node(i + 1, control.address), say) for i in range(plan.nodes)]
        stack.push_async_callback(_together, [node.stop for node in nodes])
        await _together([node.start for node in nodes])
        keeping = await stack.enter_async_context(_kept([control, *nodes]))
        await _until_reported(control.address, plan.nodes)
        say(f"{LISTENING}{control.address}")
        parts: list[Awaitable[object]] = [keeping, _tell_ready(plan, nodes, say)]
        if plan.http:
            door = Server(plan.gateway(control.address), say)
            stack.push_async_callback(door.stop)
            parts.append(_keep_open(door, plan, say))
        await _all_of(parts)


async def _tell_ready(plan: Plan, nodes: list[Server], say: Callable[[str], None]) -> None:
    await _until_ready(nodes)
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


async def _until_reported(address: str, nodes: int) -> None:
    """Waits until the control plane knows all nodes."""
    try:
        async with asyncio.timeout(REPORT_SECONDS), connect_here(address) as client:
            while len(await client.nodes()) < nodes:  # noqa: ASYNC110 - the event is in another process
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise errors.StartFailed(
            f"not all nodes reported to {address} within {REPORT_SECONDS:g} s"
        ) from error


async def _until_ready(nodes: list[Server]) -> None:
    """Waits until a deployment would be answered: until every node can look at a model."""
    from sllm import rpc

    for node in nodes:
        try:
            async with asyncio.timeout(READY_SECONDS):
                # Its address each time anew: a node that is started again has another.
                while not await rpc.is_serving(node.address, NODE_SERVICE):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise errors.StartFailed(
                f"{node.name} cannot look at models within {READY_SECONDS:g} s; its log tells why"
            ) from error
