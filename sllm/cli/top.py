"""`sllm top`: the cluster as it changes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from sllm.cli.common import Control, Json, connect_here, output, print_json
from sllm.cli.durations import duration_option, format_seconds
from sllm.cli.listings import kv_cache, link_speed
from sllm.cli.progress import LABELS
from sllm.cli.tables import Listing
from sllm.client.types.enums import Tier
from sllm.client.types.nodes import Link, Node
from sllm.client.types.operations import Cluster, DeploymentLoad, EndedRequest, InstanceLoad
from sllm.client.types.receipts import Receipt
from sllm.config import DEFAULT_CONTROL, format_bytes

if TYPE_CHECKING:
    from sllm import AsyncClient

_BAR = 10
"""Characters."""
_SHOWN = 20
"""Rows of instances and of deployments: those with most to do."""
_ENDED_SHOWN = 8
"""Requests that have ended: the latest."""


class Rates:
    """Tokens per second of every instance, from one frame to the next."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._at: float | None = None

    def take(self, instances: Iterable[InstanceLoad], now: float) -> dict[str, float]:
        """The rates since the frame before, of those that were there; `now` is in seconds."""
        counts = {one.instance.instance_id: one.generated_tokens for one in instances}
        passed = now - self._at if self._at is not None else 0.0
        before, self._before, self._at = self._before, counts, now
        if passed <= 0:
            return {}
        return {key: (counts[key] - before[key]) / passed for key in counts if key in before}


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval: Annotated[float, duration_option("Time between two frames.", "1s")] = 1.0,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Watch nodes, tiers, links, instances and queues; in a pipe, one frame after another."""
    if interval <= 0:
        raise typer.BadParameter("must be above zero", param_hint="--interval")
    client = connect_here(control)
    with suppress(KeyboardInterrupt):
        asyncio.run(_top(client, once or as_json, interval, as_json))


async def _top(client: "AsyncClient", once: bool, interval: float, as_json: bool) -> None:
    async with client, aclosing(client.watch()) as states:
        cluster = await anext(states)
        if as_json:
            print_json(cluster)
        elif once:
            output().print(frame(cluster, {}))
        else:
            await _live(_Latest(cluster), states, interval)


class _Latest:
    """The newest state; those between two frames are not drawn."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def follow(self, states: AsyncIterator[Cluster]) -> None:
        async for self.cluster in states:
            pass


async def _live(latest: _Latest, states: AsyncIterator[Cluster], interval: float) -> None:
    """Draws until it is cancelled.

    Raises:
        errors.SllmError: The cluster can be watched no more.
    """
    following = asyncio.create_task(latest.follow(states))
    try:
        await _draw(latest, interval, following)
        following.result()
    finally:
        following.cancel()
        await asyncio.wait([following])


async def _draw(latest: _Latest, interval: float, following: asyncio.Task[None]) -> None:
    rates = Rates()
    with _screen() as show:
        while not following.done():
            cluster = latest.cluster
            tokens = rates.take(cluster.instances, time.monotonic())
            show(frame(cluster, tokens))
            await asyncio.wait([following], timeout=interval)


@contextmanager
def _screen() -> Iterator[Callable[[RenderableType], None]]:
    """Shows a frame in place of the last on a terminal, and behind it elsewhere."""
    console = output()
    if not console.is_terminal:
        yield lambda frame: console.print(frame, Text())
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda frame: live.update(frame, refresh=True)


def frame(cluster: Cluster, rates: dict[str, float]) -> RenderableType:
    """The whole picture; `rates` are tokens per second by instance, as far as they are known."""
    waiting = sum(one.queued_requests for one in cluster.deployments)
    running = sum(one.in_flight for one in cluster.instances)
    heading = (
        f"{_count(cluster.nodes, 'node')}, {_count(cluster.instances, 'instance')}, "
        f"{_count(cluster.deployments, 'deployment')}; requests: {running} running, "
        f"{waiting} waiting"
    )
    return Group(
        Text(heading, style="bold"),
        Text(),
        nodes_part(cluster.nodes),
        Text(),
        instances_part(cluster.instances, rates),
        Text(),
        deployments_part(cluster.deployments),
        *([Text(), ended_part(cluster.ended_requests)] if cluster.ended_requests else []),
    )


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def nodes_part(nodes: Sequence[Node]) -> RenderableType:
    """Nodes with their tiers and links, each on a few lines."""
    accelerated = any(node.devices for node in nodes)
    tiers = (Tier.SSD, Tier.DRAM, Tier.DEVICE) if accelerated else (Tier.SSD, Tier.DRAM)
    table = Listing("NODE", *tiers, "KV CACHE", "LINKS")
    for node in nodes:
        kv = _bar(node.kv_used_bytes, node.kv_capacity_bytes)
        name = Text(node.node_id)
        if node.draining:
            name.append("\ndraining", "yellow")
        usages = [_tier(node, tier) for tier in tiers]
        table.add_row(name, *usages, kv, "\n".join(map(_link, node.links)))
    return table


def _tier(node: Node, tier: Tier) -> Text:
    for usage in node.tiers:
        if usage.tier is tier:
            return _bar(usage.used_bytes, usage.capacity_bytes)
    return Text("-")


def _bar(used: int, capacity: int) -> Text:
    share = used / capacity if capacity else 0.0
    filled = min(_BAR, round(share * _BAR))
    return Text.assemble(
        ("━" * filled, "cyan"),
        ("─" * (_BAR - filled), "dim"),
        f" {share:4.0%}\n{format_bytes(used)}/{format_bytes(capacity)}",
    )


def _link(link: Link) -> str:
    return f"{link.from_tier}→{link.to_tier} {link_speed(link)}"


def instances_part(instances: Sequence[InstanceLoad], rates: dict[str, float]) -> RenderableType:
    """Instances with what they do, the busiest first."""
    table = Listing("INSTANCE", "DEPLOYMENT", "NODE", "STATE", "REQUESTS", "TOKENS/S", "KV CACHE")
    for load in sorted(instances, key=lambda load: -load.in_flight)[:_SHOWN]:
        one = load.instance
        rate = rates.get(one.instance_id)
        table.add_row(
            one.instance_id,
            one.deployment,
            one.node_id,
            state_of(load),
            str(load.in_flight),
            "-" if rate is None else f"{rate:.1f}",
            kv_cache(one),
        )
    return _with_rest(table, len(instances))


def state_of(load: InstanceLoad) -> Text:
    """What an instance is, and how far: its start, or where its generations move."""
    shown = Text(load.instance.state)
    if load.moving_to:
        shown.append(f"\n→ {', '.join(load.moving_to)}", "yellow")
    if loading := load.loading:
        shown.append(f"\n{LABELS[loading.phase]}", "dim")
        if loading.total_bytes:
            shown.append(f" {loading.loaded_bytes / loading.total_bytes:.0%}", "cyan")
        if loading.estimated_remaining is not None:
            shown.append(f", {format_seconds(loading.estimated_remaining)} left", "dim")
    return shown


def ended_part(requests: Sequence[EndedRequest]) -> RenderableType:
    """The requests that have ended last, the latest first."""
    table = Listing("ENDED", "DEPLOYMENT", "OUTCOME", "FIRST TOKEN", "FROM", "TOOK", "TOKENS")
    for one in requests[: -_ENDED_SHOWN - 1 : -1]:
        receipt = one.receipt
        table.add_row(
            one.request_id,
            one.deployment,
            one.outcome,
            format_seconds(receipt.time_to_first_token if receipt else None),
            _origin(receipt),
            format_seconds(one.duration),
            str(one.generated_tokens),
        )
    return table


def _origin(receipt: Receipt | None) -> str:
    if receipt is None:
        return "-"
    return (receipt.from_tier or "cold") if receipt.cold else "warm"


def deployments_part(deployments: Sequence[DeploymentLoad]) -> RenderableType:
    """Deployments with their queues; those with work first."""
    table = Listing("DEPLOYMENT", "QUEUED", "READY", "STARTING")
    busiest = sorted(deployments, key=lambda one: (-one.queued_requests, one.deployment))
    for one in busiest[:_SHOWN]:
        counts = (one.queued_requests, one.ready_instances, one.starting_instances)
        table.add_row(one.deployment, *map(str, counts))
    return _with_rest(table, len(deployments))


def _with_rest(table: Listing, count: int) -> RenderableType:
    """A table, and how many rows of it are not shown."""
    return Group(table, Text(f"and {count - _SHOWN} more")) if count > _SHOWN else table
