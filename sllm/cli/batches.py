"""`sllm batch`: many requests that nobody waits for, and what has come of them."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from sllm import errors
from sllm.cli.common import Control, Json, connect, diagnostics, output, print_json
from sllm.cli.durations import duration_option, format_seconds
from sllm.cli.tables import Listing
from sllm.client.types.batches import Batch, BatchResult
from sllm.client.types.enums import BatchState
from sllm.config import DEFAULT_CONTROL

app = typer.Typer(
    no_args_is_help=True, help="Have many requests done that nobody waits for, and read them."
)

BatchId = Annotated[str, typer.Argument(help="Id of the batch.", show_default=False)]


@app.command()
def submit(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON of a request on each line, as arguments of `generate` or `embed`: "
            '{"prompt": "Once", "max_tokens": 8}, {"inputs": "Once"}; - is standard input.',
            show_default=False,
        ),
    ],
    deployment: Annotated[
        str | None, typer.Option(help="Of those requests that name none.")
    ] = None,
    batch_id: Annotated[
        str | None, typer.Option("--id", help="Names the batch; submitted again, it is one.")
    ] = None,
    time_limit: Annotated[
        float | None, duration_option("What has not ended by then fails, such as 12h.")
    ] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Submit a batch. It goes on by itself."""
    with _opened(file) as lines, connect(control) as client:
        requests: Any = _requests(lines, deployment)  # their fields are looked at one by one
        batch = client.submit_batch(requests, batch_id=batch_id, time_limit=time_limit)
    if as_json:
        print_json(batch)
    else:
        typer.echo(batch.batch_id)
        diagnostics().print(f"{batch.requests} requests; sllm batch results {batch.batch_id}")


def _opened(file: Path) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdin) if str(file) == "-" else file.open(encoding="utf-8")


def _requests(lines: TextIO, deployment: str | None) -> Iterator[dict[str, Any]]:
    """One for each line that is not empty.

    Raises:
        errors.InvalidArgument: A line is no JSON object.
    """
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield {"deployment": deployment or "", **_object(line, f"line {number}")}
    except UnicodeDecodeError as error:
        raise errors.InvalidArgument(f"the file is not UTF-8: {error}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidArgument(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise errors.InvalidArgument(f"{where} is no JSON object")
    return found


@app.command()
def ls(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """List the batches, and how far they are."""
    with connect(control) as client:
        found = client.batches()
    if as_json:
        print_json(found)
    else:
        output().print(batches_table(found, time.time()))


def batches_table(batches: Sequence[Batch], now: float) -> Listing:
    """One row for each batch; `now` is the moment to which ages are counted."""
    table = Listing("BATCH", "STATE", "REQUESTS", "FINISHED", "FAILED", "AGE", "TOOK")
    for one in batches:
        took = "" if one.ended_at is None else format_seconds(one.ended_at - one.created_at)
        table.add_row(
            one.batch_id,
            one.state,
            str(one.requests),
            str(one.finished),
            str(one.failed),
            format_seconds(max(0.0, now - one.created_at)),
            took,
        )
    return table


@app.command()
def results(
    batch_id: BatchId,
    first: Annotated[int, typer.Option(help="Number of the first one to show.")] = 0,
    follow: Annotated[bool, typer.Option(help="Until all of them have ended.")] = True,
    control: Control = DEFAULT_CONTROL,
) -> None:
    """Print what has come of a batch, JSON of a result on each line."""
    failed = False
    with connect(control) as client:
        for one in client.batch_results(batch_id, first=first, follow=follow):
            failed = failed or one.error is not None
            typer.echo(json.dumps(_plain(one)))
        state = client.batch(batch_id).state
    if failed or state is BatchState.CANCELLED:
        raise typer.Exit(1)


def _plain(one: BatchResult) -> dict[str, Any]:
    told: dict[str, Any] = {"number": one.number, "request_id": one.request_id}
    if one.result:
        told["result"] = dataclasses.asdict(one.result)
    if one.embeddings:
        told["embeddings"] = dataclasses.asdict(one.embeddings)
    if one.error:
        told["error"] = {"reason": one.error.reason, "message": one.error.message}
    return told


@app.command()
def cancel(batch_id: BatchId, control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """End a batch. What has ended of it can be read."""
    with connect(control) as client:
        batch = client.cancel_batch(batch_id)
    if as_json:
        print_json(batch)
    else:
        done = batch.finished + batch.failed
        typer.echo(f"{batch_id}: {batch.state.lower()}, {done} of {batch.requests} had ended")


@app.command()
def rm(batch_id: BatchId, control: Control = DEFAULT_CONTROL) -> None:
    """Forget a batch that has ended, with its results."""
    with connect(control) as client:
        client.delete_batch(batch_id)
