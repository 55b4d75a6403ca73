"""`sllm events`: what happens in the cluster, as it happens."""

import asyncio
import json
from contextlib import aclosing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from sllm.cli.changes import Change, changes
from sllm.cli.common import Control, Json, connect_here, diagnostics
from sllm.config import DEFAULT_CONTROL

if TYPE_CHECKING:
    from sllm import AsyncClient


def events(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """Follow nodes, instances, checkpoints and deployments as they come, change and go.

    What comes and goes again between two messages of the control plane is not seen. --json prints
    an object on each line.
    """
    client = connect_here(control)
    with suppress(KeyboardInterrupt):
        asyncio.run(_follow(client, as_json))


async def _follow(client: "AsyncClient", as_json: bool) -> None:
    async with client, aclosing(client.watch()) as states:
        before = await anext(states)
        counts = f"{len(before.nodes)} nodes, {len(before.instances)} instances"
        diagnostics().print(f"following {counts} and what changes; Ctrl-C ends it")
        async for after in states:
            for change in changes(before, after):
                typer.echo(_line(change, datetime.now(UTC), as_json))
            before = after


def _line(change: Change, now: datetime, as_json: bool) -> str:
    if as_json:
        return json.dumps({"time": now.isoformat(), **asdict(change)})
    clock = now.astimezone().strftime("%H:%M:%S")
    return f"{clock}  {change.kind:<10}  {change.what:<11}  {change.name}  {change.detail}".rstrip()
