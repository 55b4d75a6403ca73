"""Receipts, as a waterfall or side by side: where the time to the first token went."""

from collections.abc import Mapping
from typing import Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sllm.cli.common import Control, Json, connect, output, print_json
from sllm.client.types.enums import PhaseKind
from sllm.client.types.receipts import Phase, Receipt
from sllm.config import DEFAULT_CONTROL, format_bytes

_WIDTH: Final = 24
"""Characters of the way to the first token: with all else they fit a terminal of 80."""


def receipt(
    request: Annotated[
        str | None,
        typer.Argument(
            help="Id of a request that has ended; nothing: the one that ended last.",
            show_default=False,
        ),
    ] = None,
    control: Control = DEFAULT_CONTROL,
    as_json: Json = False,
) -> None:
    """Show where the time to a request's first token went; the last 1,000 are kept."""
    with connect(control) as client:
        found = client.receipt(request)
    if as_json:
        print_json(found)
    else:
        output().print(f"{found.request_id} of {found.deployment}")
        output().print(waterfall(found.receipt))


def waterfall(receipt: Receipt) -> RenderableType:
    """Each phase as a bar from its start to its end, on one scale; times in milliseconds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("PHASE", no_wrap=True)
    table.add_column("FROM", justify="right", no_wrap=True)
    table.add_column("MS", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    ends = [phase.start + phase.duration for phase in receipt.phases]
    whole = max([receipt.time_to_first_token, *ends])
    for phase in receipt.phases:
        times = (_ms(phase.start), _ms(phase.duration))
        table.add_row(_name(phase.kind), *times, _bar(phase, whole), _moved(phase))
    return Group(_heading(receipt), Text(), table)


def _heading(receipt: Receipt) -> Text:
    engine = receipt.engine or "an engine unknown"
    heading = Text(f"{_ms(receipt.time_to_first_token)} ms to the first token", style="bold")
    heading.append(f", {_start(receipt)}, {engine} on {receipt.node_id}", style="not bold")
    if receipt.estimated_start is not None:
        told = f"\nthe start was expected to take {_ms(receipt.estimated_start)} ms"
        took = f" and took {_ms(receipt.actual_start)}" if receipt.actual_start is not None else ""
        heading.append(told + took, style="not bold")
    if receipt.kept_prompt:
        heading.append(f"\nof the prompt, kept: {_kept(receipt)}", style="not bold")
    return heading


def _bar(phase: Phase, whole: float) -> Text:
    """One character at least, so that what is short is seen."""
    scale = _WIDTH / whole if whole > 0 else 0.0
    before = min(round(phase.start * scale), _WIDTH - 1)
    filled = min(max(1, round(phase.duration * scale)), _WIDTH - before)
    colour = "yellow" if phase.kind is PhaseKind.QUEUED else "cyan"
    return Text.assemble(" " * before, ("━" * filled, colour), " " * (_WIDTH - before - filled))


def _moved(phase: Phase) -> str:
    if phase.size_bytes is None:
        return ""
    speed = f", {format_bytes(int(phase.size_bytes / phase.duration))}/s" if phase.duration else ""
    return format_bytes(phase.size_bytes) + speed


def _name(kind: PhaseKind) -> str:
    return kind.lower().replace("_", " ")


def receipts_table(receipts: Mapping[str, Receipt]) -> Table:
    """The receipts side by side, each under its title; times in milliseconds."""
    table = Table()
    table.add_column("ms")
    for title in receipts:
        table.add_column(title, justify="right")
    columns = receipts.values()
    for kind in PhaseKind:
        if any(phase.kind is kind for receipt in columns for phase in receipt.phases):
            table.add_row(_name(kind), *(_duration(receipt, kind) for receipt in columns))
    table.add_section()
    table.add_row("time to first token", *(_ms(one.time_to_first_token) for one in columns))
    table.add_row("estimated start", *(_ms(one.estimated_start) for one in columns))
    table.add_row("actual start", *(_ms(one.actual_start) for one in columns))
    table.add_row("start", *(_start(one) for one in columns))
    table.add_row("node", *(one.node_id for one in columns))
    table.add_row("engine", *(one.engine for one in columns))
    if any(one.kept_prompt for one in columns):
        table.add_row("prompt kept", *(_kept(one) for one in columns))
    if any(one.adapter for one in columns):
        table.add_row("adapter", *(f"{one.adapter} over {one.deployment}" for one in columns))
    return table


def _kept(receipt: Receipt) -> str:
    """Of the prompt, what was not computed, and where it came from."""
    return ", ".join(f"{one.tokens} tokens from {one.tier}" for one in receipt.kept_prompt)


def _duration(receipt: Receipt, kind: PhaseKind) -> str:
    durations = [phase.duration for phase in receipt.phases if phase.kind is kind]
    return _ms(sum(durations)) if durations else ""


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"


def _start(receipt: Receipt) -> str:
    return f"cold, {receipt.from_tier}" if receipt.cold else "warm"
