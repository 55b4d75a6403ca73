"""`sllm explain`, `prefetch`, `pin`, `unpin`, `pins` and `drain`: what operators have it do."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sllm.cli.common import Control, Json, connect, diagnostics, output, print_json
from sllm.cli.deployments import Name
from sllm.cli.durations import duration_option, format_seconds
from sllm.cli.progress import LoadingBar
from sllm.cli.tables import Listing
from sllm.client.types.operations import (
    DrainProgress,
    Pin,
    Placement,
    PlacementCandidate,
    StartEstimate,
)
from sllm.config import DEFAULT_CONTROL, format_bytes

if TYPE_CHECKING:
    from sllm import Client

Tier = Annotated[str, typer.Option(help="ssd or dram.")]
Ttl = Annotated[float | None, duration_option("How long it stays, such as 90s, 10m or 2h.")]


def explain(
    name: Name,
    zone: Annotated[str | None, typer.Option(help="Where the request would come from.")] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Say where one more request would be served now, and why not elsewhere."""
    with connect(control) as client:
        placement = client.explain(name, zone)
    if as_json:
        print_json(placement)
        return
    console = output()
    where = f" on {placement.node_id}" if placement.node_id else ""
    action = placement.action.replace("_", " ").lower()
    console.print(Text.assemble((action, "bold"), f"{where}: {placement.why}"))
    if placement.engine:
        console.print(f"engine: {placement.engine}")
    if kept := placement.learned:
        console.print(
            f"kept when idle: {format_seconds(kept.instance)}, its weights in DRAM for "
            f"{format_seconds(kept.weights)} more, by the pauses between requests"
        )
    if tuned := placement.tuned:
        console.print(
            f"requests at once: {tuned.requests} per instance, with "
            f"{format_seconds(tuned.time_per_token)} between two tokens"
        )
    if placement.candidates:
        console.print(candidates_table(placement))


def prefetch(
    what: Annotated[
        str,
        typer.Argument(
            help="Name of a deployment, or a source: a URL or an absolute path.",
            show_default=False,
        ),
    ],
    tier: Tier = "dram",
    node: Annotated[
        str | None, typer.Option(help="Where to. Default: where a start would be soonest.")
    ] = None,
    ttl: Ttl = None,
    dtype: Annotated[
        str | None, typer.Option(help="For a source: torch dtype to convert it to.")
    ] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Bring a checkpoint up before anybody asks for it, and keep it there for 10 minutes."""
    is_source = "/" in what
    with connect(control) as client, LoadingBar() as bar:
        done = client.prefetch(
            None if is_source else what,
            source=what if is_source else None,
            dtype=dtype,
            tier=tier,
            node=node,
            ttl=ttl,
            on_progress=bar.show,
        )
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{what}: in {done.tier} of {done.node_id}, {_until(done.pinned_until)}")


def pin(
    name: Name,
    node: Annotated[str, typer.Option(help="Where it stays.", show_default=False)],
    tier: Tier = "dram",
    ttl: Ttl = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Keep a deployment's checkpoint on a tier of a node."""
    with connect(control) as client, LoadingBar() as bar:
        pinned = client.pin(name, node=node, tier=tier, ttl=ttl, on_progress=bar.show)
    if as_json:
        print_json(pinned)
    else:
        typer.echo(f"{_place(pinned)}: pinned {_until(pinned.pinned_until)}")


def unpin(
    name: Name,
    node: Annotated[str | None, typer.Option(help="Only there.")] = None,
    tier: Annotated[str | None, typer.Option(help="Only there: ssd or dram.")] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """End the pins of a deployment."""
    with connect(control) as client:
        unpinned = client.unpin(name, node=node, tier=tier)
    if as_json:
        print_json(unpinned)
    else:
        for one in unpinned:
            typer.echo(f"{_place(one)}: no longer pinned")


def pins(
    name: Annotated[str | None, typer.Argument(help="Only those of this deployment.")] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """List what is pinned, and whether its nodes hold it."""
    with connect(control) as client:
        found = client.pins(name)
    if as_json:
        print_json(found)
    else:
        output().print(pins_table(found))


def pins_table(pins: Sequence[Pin]) -> Listing:
    """One row for each pin."""
    table = Listing("DEPLOYMENT", "TIER", "NODE", "HELD", "UNTIL")
    for one in pins:
        until = "-" if one.pinned_until is None else _moment(one.pinned_until)
        table.add_row(one.deployment, one.tier, one.node_id, "yes" if one.held else "no", until)
    return table


def drain(
    node: Annotated[str, typer.Argument(help="Id of the node.", show_default=False)],
    grace: Annotated[
        float | None,
        duration_option("Time that running requests have. Default: as long as they take."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if requests are left without a node.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Give the node new work again instead.")
    ] = False,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Give a node no new work, and wait until it runs nothing any more."""
    with connect(control) as client:
        if undo:
            client.undrain(node)
            said = f"{node}: takes new work"
        else:
            _drain(client, node, grace, force)
            said = f"{node}: drained; it gets no new work until `sllm drain --undo {node}`"
        if as_json:
            print_json(next((one for one in client.nodes() if one.node_id == node), None))
        else:
            typer.echo(said)


def _drain(client: "Client", node: str, grace: float | None, force: bool) -> None:
    with diagnostics().status(f"{node}: draining") as status:

        def show(left: DrainProgress) -> None:
            requests, instances = left.running_requests, left.instances
            status.update(f"{node}: {requests} requests and {instances} instances are left")

        client.drain(node, grace=grace, force=force, on_progress=show)


def candidates_table(placement: Placement) -> Listing:
    """One row for each node, the chosen one first."""
    way = ("WAY",) if any(one.parts and one.parts.distance for one in placement.candidates) else ()
    kept = ("KEPT",) if any(one.parts and one.parts.saved for one in placement.candidates) else ()
    columns = ("ROOM", "QUEUE", "TRANSFER", "INIT", *way, *kept)
    table = Listing(
        *("NODE", "FROM", "READY IN", *columns, "FIRST", "WHY"), folded=("FIRST", "WHY")
    )
    for one in placement.candidates:
        times = _times(one.parts, columns) if one.parts else ()
        table.add_row(
            one.node_id,
            f"{one.from_tier}, ready-made" if one.ready_made else one.from_tier,
            format_seconds(one.estimate),
            *(map(format_seconds, times) if times else ("-",) * len(columns)),
            _first(one),
            one.verdict,
            style="bold" if one.node_id == placement.node_id else None,
        )
    return table


def _times(parts: StartEstimate, columns: Sequence[str]) -> tuple[float, ...]:
    way = (parts.distance,) if "WAY" in columns else ()
    kept = (-parts.saved,) if "KEPT" in columns else ()
    return parts.making_room, parts.queue, parts.transfer, parts.init, *way, *kept


def _first(one: PlacementCandidate) -> str:
    """What has to happen there before."""
    parts = [
        f"{len(one.victims)} idle end" if one.victims else "",
        f"{len(one.migrated)} move" if one.migrated else "",
        f"evict {format_bytes(one.evicted_bytes)}" if one.evicted_bytes else "",
    ]
    return ", ".join(part for part in parts if part) or "-"


def _place(pin: Pin) -> str:
    return f"{pin.deployment} in {pin.tier} of {pin.node_id}"


def _until(moment: float | None) -> str:
    if moment is None:
        return "until it is unpinned"
    return f"until {_moment(moment)}"


def _moment(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
