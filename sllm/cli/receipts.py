"""Receipts as a table: where the time to the first token went."""

from collections.abc import Mapping

from rich.table import Table

from sllm.client.types.enums import PhaseKind
from sllm.client.types.events import Receipt


def receipts_table(receipts: Mapping[str, Receipt]) -> Table:
    """The receipts side by side, each under its title; times in milliseconds."""
    table = Table()
    table.add_column("ms")
    for title in receipts:
        table.add_column(title, justify="right")
    columns = receipts.values()
    for kind in PhaseKind:
        if any(phase.kind is kind for receipt in columns for phase in receipt.phases):
            name = kind.lower().replace("_", " ")
            table.add_row(name, *(_duration(receipt, kind) for receipt in columns))
    table.add_section()
    table.add_row("time to first token", *(_ms(one.time_to_first_token) for one in columns))
    table.add_row("estimated start", *(_ms(one.estimated_start) for one in columns))
    table.add_row("actual start", *(_ms(one.actual_start) for one in columns))
    table.add_row("start", *(_start(one) for one in columns))
    table.add_row("node", *(one.node_id for one in columns))
    table.add_row("engine", *(one.engine for one in columns))
    if any(one.adapter for one in columns):
        table.add_row("adapter", *(f"{one.adapter} over {one.deployment}" for one in columns))
    return table


def _duration(receipt: Receipt, kind: PhaseKind) -> str:
    durations = [phase.duration for phase in receipt.phases if phase.kind is kind]
    return _ms(sum(durations)) if durations else ""


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"


def _start(receipt: Receipt) -> str:
    return f"cold, {receipt.from_tier}" if receipt.cold else "warm"
