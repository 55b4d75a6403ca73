"""What the console takes of a browser: a cluster of fake nodes over the real protocol, watched.

    python -m bench.console --nodes 10 --instances 200

Measured are the frames of a page that follows the cluster while requests come and instances start
and end, and what the page's thread does meanwhile.
"""

import asyncio
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from playwright.async_api import Page
from serverlessllm.v1 import types_pb2 as pb

from bench.report import print_table, write_figures
from sllm import errors
from tests.control.clusters import Cluster, cluster_of
from tests.gateway.console.browser import browsing, chromium, console_of
from tests.gateway.console.lively_node import LivelyNode
from tests.support import assert_eventually

DEPLOYMENTS = 40
RESTLESS = 8
"""Deployments whose instances come and go."""
MOST_RESTLESS = 10
"""Instances of each of them."""
KV_MIB = 8
"""What an instance takes of its node's."""
SETTLE_MS = 8_000
"""Before a page is watched, that all is on it."""
FRAME_MS = 1000 / 60
PLACES = ("cluster", "deployments", "requests")
FRAMES = """
milliseconds => new Promise(resolve => {
  const frames = [], began = performance.now();
  let last = began;
  requestAnimationFrame(function next(at) {
    frames.push(at - last);
    last = at;
    if (at - began < milliseconds) requestAnimationFrame(next);
    else resolve(frames.slice(2));
  });
})
"""


def main(
    nodes: Annotated[int, typer.Option(help="Fake nodes.")] = 10,
    instances: Annotated[int, typer.Option(help="On each of them.")] = 200,
    seconds: Annotated[float, typer.Option(help="For which each page is watched.")] = 15.0,
    shots: Annotated[Path | None, typer.Option(help="Directory for pictures.")] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Print the frames of each page."""
    rows, figures = asyncio.run(_measure(nodes, instances, seconds, shots))
    columns = (
        "page",
        "starts",
        "frame ms",
        "99 %",
        "task ms, 99 %",
        "longest",
        "over a frame",
        "thread",
    )
    print_table(f"The console at {nodes} nodes of {instances} instances", columns, rows)
    write_figures(json, figures)


async def _measure(
    nodes: int, instances: int, seconds: float, shots: Path | None
) -> tuple[list[list[str]], dict[str, float]]:
    rows: list[list[str]] = []
    figures: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = await stack.enter_async_context(cluster_of(directory, lease_seconds=30.0))
        await _fill(cluster, nodes, instances)
        await stack.enter_async_context(_traffic(cluster))
        url = await stack.enter_async_context(console_of(cluster.address))
        browser = stack.enter_context(chromium())
        page = await stack.enter_async_context(browsing(browser, 1600, 1000))
        for place in PLACES:
            await page.goto(f"{url}/#/{place}")
            await page.wait_for_timeout(SETTLE_MS)
            before = _starts(cluster)
            frames, tasks = await _watch(page, seconds)
            rows.append(_row(place, frames, tasks, seconds, _starts(cluster) - before))
            figures[f"{place}_p99_ms"] = _at(frames, 0.99)
            figures[f"{place}_longest_task_ms"] = max(tasks)
            if shots:
                await page.screenshot(path=shots / f"scale-{place}.png")
    return rows, figures


async def _watch(page: Page, seconds: float) -> tuple[list[float], list[float]]:
    """The frames' lengths by the clock, and what the thread's tasks took of a processor, in ms."""
    session = await page.context.new_cdp_session(page)
    events: list[Any] = []
    ended = asyncio.Event()
    session.on("Tracing.dataCollected", lambda told: events.extend(told["value"]))
    session.on("Tracing.tracingComplete", lambda _: ended.set())
    await session.send("Tracing.start", {"traceConfig": {"includedCategories": ["toplevel"]}})
    frames: list[float] = await page.evaluate(FRAMES, seconds * 1000)
    await session.send("Tracing.end")
    await ended.wait()
    await session.detach()
    return frames, _tasks(events)


def _tasks(events: Sequence[Any]) -> list[float]:
    """Tasks of pages' main threads; those of the clock would count what others do meanwhile."""
    names = [one for one in events if one["name"] == "thread_name"]
    main = {(one["pid"], one["tid"]) for one in names if one["args"]["name"] == "CrRendererMain"}
    return [
        one["tdur"] / 1000
        for one in events
        if one["name"] == "ThreadControllerImpl::RunTask"
        and (one["pid"], one["tid"]) in main
        and "tdur" in one
    ]


def _row(
    place: str, frames: list[float], tasks: list[float], seconds: float, starts: int
) -> list[str]:
    return [
        place,
        str(starts),
        f"{statistics.median(frames):.1f}",
        f"{_at(frames, 0.99):.1f}",
        f"{_at(tasks, 0.99):.1f}",
        f"{max(tasks):.1f}",
        f"{sum(task > FRAME_MS for task in tasks)} of {len(tasks)}",
        f"{sum(tasks) / seconds / 10:.0f} %",
    ]


def _at(frames: list[float], share: float) -> float:
    return sorted(frames)[min(len(frames) - 1, int(share * len(frames)))]


# --- the cluster ----------------------------------------------------------------------------------


async def _fill(cluster: Cluster, nodes: int, instances: int) -> None:
    for number in range(nodes):
        node = LivelyNode(f"node-{number + 1}", dram_mib=64 * 1024, kv_mib=KV_MIB * instances)
        cluster.nodes[node.node_id] = node
        await node.start(cluster.address)
        node.token_seconds = 0.05
    await cluster.wait_for_nodes(nodes)
    fixed = (nodes * instances - RESTLESS * MOST_RESTLESS) // (DEPLOYMENTS - RESTLESS)
    for number in range(1, DEPLOYMENTS + 1):
        restless = number <= RESTLESS
        await cluster.caller.deploy(
            f"model-{number}",
            f"file:///models/{number}",
            keep_alive=0.3 if restless else 60.0,
            min_replicas=0 if restless else fixed,
            max_replicas=MOST_RESTLESS if restless else fixed,
            max_concurrency=1 if restless else 4,
        )
    enough = fixed * (DEPLOYMENTS - RESTLESS)
    await assert_eventually(lambda: _ready(cluster) >= enough, timeout=300.0)


def _starts(cluster: Cluster) -> int:
    return sum(len(node.started()) for node in cluster.nodes.values())


def _ready(cluster: Cluster) -> int:
    instances = [one for node in cluster.nodes.values() for one in node.instances.values()]
    return sum(one.state == pb.INSTANCE_STATE_READY for one in instances)


@asynccontextmanager
async def _traffic(cluster: Cluster) -> AsyncIterator[None]:
    """Requests for all deployments, most for the restless ones, whose instances come and go."""
    for node in cluster.nodes.values():
        if isinstance(node, LivelyNode):
            node.load_seconds = 1.5
    chance = random.Random(1)

    async def ask(number: int) -> None:
        while True:
            with suppress(errors.SllmError):
                tokens = chance.randint(5, 80)
                await cluster.caller.complete(f"model-{number}", max_tokens=tokens)
            await asyncio.sleep(chance.expovariate(1.0))

    numbers = [*range(1, DEPLOYMENTS + 1), *list(range(1, RESTLESS + 1)) * 8]
    tasks = [asyncio.create_task(ask(number)) for number in numbers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    typer.run(main)
