"""One tenant floods the cluster with ten times what it may; another asks for a little.

    PYTHONPATH=examples python -m bench.tenants --json FILE

In turns the second tenant is alone, beside the first with as many callers as it may have, and
beside ten times as many, who come back at once when they are refused, or as told. What is compared
is the time to its first token.
"""

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer

import sllm
from bench.batching import percentile
from bench.local_cluster import DEFAULT_ENGINE, MIB, LocalCluster, local_cluster
from bench.report import print_table, write_figures
from sllm import errors

MODEL = Path(__file__).parent.parent / "examples" / "tiny-llama"
FLOODING, CALM = "acme", "zebra"
NAME = "tiny"
"""Of the deployment that each tenant has."""
LIMIT = 2
"""Requests that the flooding tenant may have at once."""
FLOOD = 10 * LIMIT
LONG_TOKENS, FEW_TOKENS = 256, 4
BACK_SECONDS = 0.01
"""Until a caller that was refused asks again, if it does not wait for as long as it was told."""
PAUSE_SECONDS = 0.02
"""Between two requests of the calm tenant."""
SETTLE_SECONDS = 1.0


@dataclass(slots=True)
class Seen:
    """What the calm tenant saw, and what became of the other's requests."""

    first_tokens: list[float] = field(default_factory=list)
    """Seconds."""
    outcomes: Counter[str] = field(default_factory=Counter)


@contextmanager
def flood(address: str, key: str, callers: int, seen: Seen, *, patient: bool) -> Iterator[None]:
    """So many callers of the flooding tenant, for as long as the context lasts.

    In a process of their own: what they take is not to slow down who measures.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
        target=_flood, args=(address, key, callers, patient, theirs), daemon=True
    )
    process.start()
    ours.recv()  # they have begun
    try:
        yield
    finally:
        ours.send(None)
        seen.outcomes += ours.recv()
        process.join()


def _flood(address: str, key: str, callers: int, patient: bool, pipe: Connection) -> None:
    pipe.send(asyncio.run(_call(address, key, callers, patient, pipe)))


async def _call(
    address: str, key: str, callers: int, patient: bool, pipe: Connection
) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def call(client: sllm.AsyncClient) -> None:
        while True:
            try:
                await client.complete(NAME, "More", max_tokens=LONG_TOKENS, ignore_eos=True)
                outcomes["OK"] += 1
            except errors.SllmError as error:
                outcomes[error.reason] += 1
                told = error.retry_after if patient else None
                await asyncio.sleep(told or BACK_SECONDS)

    async with sllm.AsyncClient(address, api_key=key) as client:
        tasks = [asyncio.create_task(call(client)) for _ in range(callers)]
        await asyncio.sleep(SETTLE_SECONDS)
        pipe.send(None)
        await asyncio.to_thread(pipe.recv)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


async def first_token(client: sllm.AsyncClient) -> float:
    """Seconds to the first token of one request of the calm tenant."""
    began = time.monotonic()
    async with client.generate(NAME, "A little", max_tokens=FEW_TOKENS, ignore_eos=True) as stream:
        async for event in stream:
            if isinstance(event, sllm.Tokens):
                return time.monotonic() - began
    raise errors.Internal("a generation had no token")


async def measure(
    cluster: LocalCluster, engine: str, rounds: int, asked: int, *, patient: bool
) -> dict[str, Seen]:
    """What was seen with so many callers of the flooding tenant."""
    found = {name: Seen() for name in ("alone", "limit", "flood")}
    callers = {"alone": 0, "limit": LIMIT, "flood": FLOOD}
    cluster.client.set_tenant(FLOODING, sllm.TenantLimits(requests=LIMIT))
    keys = {}
    for tenant in (FLOODING, CALM):
        keys[tenant] = cluster.client.create_key(tenant=tenant, role="operator").secret
        with sllm.Client(cluster.address, api_key=keys[tenant]) as its:
            its.deploy(NAME, f"file://{MODEL}", engine=engine, min_replicas=1)
            its.complete(NAME, "first", max_tokens=2)
    async with sllm.AsyncClient(cluster.address, api_key=keys[CALM]) as client:
        for _ in range(rounds):
            for name, seen in found.items():
                key = keys[FLOODING]
                with flood(cluster.address, key, callers[name], seen, patient=patient):
                    for _ in range(asked):
                        seen.first_tokens.append(await first_token(client))
                        await asyncio.sleep(PAUSE_SECONDS)
    return found


def main(
    rounds: Annotated[int, typer.Option(help="Of all three, one after the other.")] = 5,
    requests: Annotated[int, typer.Option(help="Of the calm tenant, in each.")] = 100,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = DEFAULT_ENGINE,
    patient: Annotated[
        bool, typer.Option(help="Those who are refused wait for as long as they are told.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Runs it and prints what the calm tenant saw."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_cluster(
            Path(scratch),
            dram_bytes=256 * MIB,
            kv_bytes=512 * MIB,
            nodes=2,
            engines=engine,
            auth=True,
        ) as cluster,
    ):
        cluster.wait_for_engines(2)
        found = asyncio.run(measure(cluster, engine, rounds, requests, patient=patient))
    _print(found, engine)
    p50, p99 = (
        {name: percentile(seen.first_tokens, share) for name, seen in found.items()}
        for share in (0.5, 0.99)
    )
    write_figures(
        json,
        {
            "first_token_p99_flood_to_alone": p99["flood"] / p99["alone"],
            "first_token_p99_flood_to_limit": p99["flood"] / p99["limit"],
            "first_token_p50_flood_to_alone": p50["flood"] / p50["alone"],
            "first_token_p50_flood_to_limit": p50["flood"] / p50["limit"],
            "refused": found["flood"].outcomes["TENANT_LIMIT"],
        },
    )


def _print(found: dict[str, Seen], engine: str) -> None:
    rows = [
        (
            name,
            str(len(seen.first_tokens)),
            *(f"{1000 * percentile(seen.first_tokens, share):.1f}" for share in (0.5, 0.9, 0.99)),
            f"{1000 * statistics.mean(seen.first_tokens):.1f}",
            ", ".join(f"{count} {reason}" for reason, count in seen.outcomes.most_common(2)),
        )
        for name, seen in found.items()
    ]
    print_table(
        f"First tokens of the calm tenant, ms; {engine}; the other may have {LIMIT}, asks {FLOOD}",
        ("", "requests", "P50", "P90", "P99", "mean", "the other's"),
        rows,
    )


if __name__ == "__main__":
    typer.run(main)
