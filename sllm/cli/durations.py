"""Options that are lengths of time, and times for people."""

import re
from typing import Any, Final

import typer

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(-?\d+(?:\.\d+)?)\s*([a-z]*)")


def duration_option(explanation: str, default: str = "") -> Any:
    """An option of type float in seconds that is written like 90s, 10m or 2h.

    Args:
        explanation: What it is for.
        default: What help shows as its default. Empty: none.
    """
    return typer.Option(
        parser=parse_duration, metavar="TIME", help=explanation, show_default=default or False
    )


def parse_duration(text: str | float) -> float:
    """Seconds of a length of time on the command line; a default is a number already.

    Raises:
        typer.BadParameter: It is no length of time.
    """
    found = _DURATION.fullmatch(str(text).strip().lower())
    if found is None or found[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no time: write one like 90s, 10m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def format_seconds(seconds: float | None) -> str:
    """A length of time for people: "310 ms", "1.25 s", "3.5 min"; "-" if it is not known."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
