"""`sllm migrate`: running generations go on at another node."""

from enum import StrEnum
from typing import Annotated

import typer

from sllm.cli.common import Control, Json, connect, output, print_json
from sllm.cli.durations import duration_option
from sllm.cli.progress import LoadingBar
from sllm.cli.tables import Listing
from sllm.client.types.events import CacheMove
from sllm.client.types.migrations import Migration
from sllm.config import DEFAULT_CONTROL, format_bytes


class Way(StrEnum):
    """How KV caches come."""

    TOKENS = "tokens"
    PAGES = "pages"


def migrate(
    instance: Annotated[
        str | None, typer.Argument(help="The instance to move, with all its requests.")
    ] = None,
    request: Annotated[str | None, typer.Option(help="The one request to move instead.")] = None,
    to: Annotated[
        str | None, typer.Option(help="Node to move to.", show_default="the soonest")
    ] = None,
    way: Annotated[
        Way | None,
        typer.Option(
            help="How KV caches are to come there, where they can.",
            show_default="by what is sooner",
        ),
    ] = None,
    timeout: Annotated[float | None, duration_option("Time for all of it, such as 30s.")] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Move running generations to another node, while their callers read on."""
    if (instance is None) == (request is None):
        raise typer.BadParameter("name an instance, or one request with --request")
    with connect(control) as client, LoadingBar() as bar:
        migration = client.migrate(
            request_id=request,
            instance_id=instance,
            to_node=to,
            way=way,
            timeout=timeout,
            on_progress=bar.show,
        )
    if as_json:
        print_json(migration)
    else:
        output().print(_requests_table(migration))
        output().print(_summary(migration))


def _requests_table(migration: Migration) -> Listing:
    headings = ("REQUEST", "OUTCOME", "ROUNDS", "TOKENS", "CACHE", "CUTOVER", "TOTAL")
    table = Listing(*headings, folded=("OUTCOME", "CACHE"))
    for one in migration.requests:
        times = (_milliseconds(value) for value in (one.cutover, one.duration))
        outcome = f"{one.outcome} {one.message}".strip()
        counts = str(one.rounds), str(one.tokens)
        table.add_row(one.request_id, outcome, *counts, _cache(one.cache), *times)
    return table


def _cache(cache: CacheMove | None) -> str:
    """By which way it has come, and what both were expected to take."""
    if cache is None:
        return ""
    expected = [
        f"{name} {_milliseconds(seconds)}"
        for name, seconds in (("tokens", cache.by_tokens), ("pages", cache.by_pages))
        if seconds is not None
    ]
    whole = f"{cache.way}, of {format_bytes(cache.page_bytes)}" if cache.page_bytes else cache.way
    return f"{whole}: {cache.why}" + (f" ({', '.join(expected)})" if expected else "")


def _summary(migration: Migration) -> str:
    estimate = migration.estimate
    expected = "not known before" if estimate is None else f"expected {_milliseconds(estimate)}"
    took = f"{_milliseconds(migration.duration)}, {expected}"
    return f"to {migration.instance_id} on {migration.node_id} in {took}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
