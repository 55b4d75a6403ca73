"""HTTP beside gRPC: the first token, tokens per second, idle streams, and slow readers.

    PYTHONPATH=examples python -m bench.gateway --json FILE

The same requests go to the control plane by the SDK, and through a gateway as streamed completions,
in turns. Callers of both read what comes and do nothing with it.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

import sllm
from bench.local_cluster import MIB, local_cluster
from bench.report import print_table, spread, write_figures

MODEL = Path(__file__).parent.parent / "examples" / "tiny-llama"
STREAMS = 32
TOKENS = 128
PROMPT = "The for statement"
START_SECONDS = 60.0
QUEUE = 800
"""Requests that wait for one deployment: the router takes 1,000."""

FEW_TOKENS = 4
"""Of those whose first token is what matters."""

Ask = Callable[[int], Awaitable[float]]
"""One request of so many tokens; gives the seconds to its first."""


@dataclass(frozen=True, slots=True)
class Door:
    """A gateway that runs."""

    host: str
    port: int
    process: psutil.Process

    async def open(
        self, body: dict[str, object]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends a request on a connection of its own."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        encoded = json.dumps({"model": "tiny", "prompt": PROMPT, "stream": True, **body}).encode()
        asked = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        writer.write(f"{asked}content-length: {len(encoded)}\r\n\r\n".encode() + encoded)
        return reader, writer

    async def ask(self, tokens: int) -> float:
        """See Ask."""
        began = time.perf_counter()
        reader, writer = await self.open({"max_tokens": tokens, "ignore_eos": True})
        await reader.readuntil(b"data: ")
        first = time.perf_counter() - began
        while await reader.read(1 << 16):
            pass
        writer.close()
        return first


def by_grpc(client: sllm.AsyncClient) -> Ask:
    """The same by the SDK."""

    async def ask(tokens: int) -> float:
        began, first = time.perf_counter(), 0.0
        async with client.generate("tiny", PROMPT, max_tokens=tokens, ignore_eos=True) as stream:
            async for event in stream:
                if isinstance(event, sllm.Tokens) and not first:
                    first = time.perf_counter() - began
        return first

    return ask


@contextmanager
def gateway(address: str) -> Iterator[Door]:
    """A gateway before a control plane, for as long as the block lasts."""
    command = [sys.executable, "-m", "sllm.cli.main", "gateway", "--port=0", "--control", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        host, _, port = process.stdout.readline().split()[-1].rpartition(":")
        yield Door(host, int(port), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


async def rate(ask: Ask) -> float:
    """Tokens per second of `STREAMS` callers at once."""
    began = time.perf_counter()
    await asyncio.gather(*(ask(TOKENS) for _ in range(STREAMS)))
    return STREAMS * TOKENS / (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured, of both."""

    first_grpc: list[float]
    first_http: list[float]
    """Seconds to the first token, of one caller at a time."""
    rate_grpc: list[float]
    rate_http: list[float]
    """Tokens per second of 32 callers."""
    idle_bytes: float
    """Resident memory with idle streams."""
    slow_ratio: float
    """Tokens per second beside as many who do not read, over those without them."""

    @property
    def first_overhead(self) -> float:
        """Seconds that a first token takes longer, in the middle."""
        return statistics.median(self.first_http) - statistics.median(self.first_grpc)

    @property
    def rate_ratio(self) -> float:
        """Tokens per second through the gateway over those without it, in the middle."""
        pairs = zip(self.rate_http, self.rate_grpc, strict=True)
        return statistics.median(http / grpc for http, grpc in pairs)


async def measure(address: str, door: Door, rounds: int, idle: int) -> Figures:
    """Both in turns, then those who do not read."""
    async with sllm.AsyncClient(address) as client:
        await client.deploy("tiny", MODEL, keep_alive=3600.0, max_concurrency=2 * STREAMS)
        grpc, http = by_grpc(client), door.ask
        for warming in (grpc, http):
            await warming(FEW_TOKENS)
        firsts: tuple[list[float], list[float]] = [], []
        rates: tuple[list[float], list[float]] = [], []
        for _ in range(20 * rounds):
            for found, ask in zip(firsts, (grpc, http), strict=True):
                found.append(await ask(FEW_TOKENS))
        for _ in range(rounds):
            for found, ask in zip(rates, (grpc, http), strict=True):
                found.append(await rate(ask))
        slow = await _beside_slow(client, door, rounds)
        await client.delete("tiny")
        idle_bytes = await _idle(client, door, idle)
    return Figures(*firsts, *rates, idle_bytes, slow / statistics.median(rates[1]))


async def _until_generated(client: sllm.AsyncClient) -> None:
    """Waits until nothing is computed any more of what nobody reads."""
    await asyncio.sleep(2.0)
    until = time.monotonic() + START_SECONDS
    while any(one.running_requests for one in await client.instances("tiny")):
        if time.monotonic() > until:
            raise TimeoutError("what nobody reads is generated without an end")
        await asyncio.sleep(0.2)


async def _beside_slow(client: sllm.AsyncClient, door: Door, rounds: int) -> float:
    """Tokens per second beside as many streams that nobody reads."""
    found = []
    for _ in range(rounds):
        async with AsyncExitStack() as stack:
            held = []  # what nobody has closes its connection
            for _ in range(STREAMS):
                # As much as no buffer on the way takes.
                body: dict[str, object] = {"max_tokens": 400, "ignore_eos": True, "logprobs": 20}
                reader, writer = await door.open(body)
                held.append((reader, writer))
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket
                stack.callback(writer.transport.abort)
            await _until_generated(client)
            found.append(await rate(door.ask))
    return statistics.median(found)


async def _idle(client: sllm.AsyncClient, door: Door, count: int) -> float:
    """Resident bytes of the gateway with so many streams that wait for an instance."""
    names = [f"idle-{number}" for number in range(1 + count // QUEUE)]
    async with AsyncExitStack() as stack:
        for name in names:
            await client.deploy(name, MODEL, keep_alive=0.0, max_concurrency=1)
            stack.push_async_callback(client.delete, name)
        held = []
        for number in range(count):
            name = names[number % len(names)]
            body: dict[str, object] = {"model": name, "max_tokens": 480, "ignore_eos": True}
            reader, writer = await door.open(body)
            held.append((reader, writer))
            stack.callback(writer.transport.abort)
        await _until_waiting(client, names, int(0.9 * count))
        return float(door.process.memory_info().rss)


async def _until_waiting(client: sllm.AsyncClient, names: Sequence[str], count: int) -> None:
    until = time.monotonic() + START_SECONDS
    while sum([(await client.deployment(name)).queued_requests for name in names]) < count:
        if time.monotonic() > until:
            raise TimeoutError("the streams did not come to wait")
        await asyncio.sleep(0.2)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of all streams.")] = 5,
    idle: Annotated[int, typer.Option(help="Idle streams.")] = 2000,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write figures here.")] = None,
) -> None:
    """Measure, and print a table."""
    options = ("--engines=transformers",)
    with (
        tempfile.TemporaryDirectory(prefix="sllm-gateway-") as directory,
        local_cluster(
            Path(directory), dram_bytes=256 * MIB, kv_bytes=512 * MIB, options=options
        ) as cluster,
        gateway(cluster.address) as door,
    ):
        cluster.wait_for_engines(1)
        found = asyncio.run(measure(cluster.address, door, rounds, idle))
    rows = [
        ["first token, ms: gRPC", spread(found.first_grpc)],
        ["first token, ms: HTTP", spread(found.first_http)],
        [f"tokens/s of {STREAMS}: gRPC", spread(found.rate_grpc, "")],
        [f"tokens/s of {STREAMS}: HTTP", spread(found.rate_http, "")],
        ["HTTP over gRPC", f"{found.rate_ratio:.2f}"],
        ["beside as many who do not read", f"{found.slow_ratio:.2f}"],
        [f"MiB with {idle} idle streams", f"{found.idle_bytes / MIB:.0f}"],
    ]
    print_table("HTTP beside gRPC", ["", "median (least - most)"], rows)
    write_figures(
        json_path,
        {
            "first_token_overhead_seconds": found.first_overhead,
            "tokens_ratio_to_grpc_32": found.rate_ratio,
            "tokens_ratio_beside_slow_readers": found.slow_ratio,
            "idle_streams": float(idle),
            "idle_memory_bytes": found.idle_bytes,
        },
    )


if __name__ == "__main__":
    typer.run(main)
