"""Tables whose names stay whole, however narrow the terminal is."""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

_GAP = 2
"""Characters between two columns."""
_FOLDED = 20
"""Characters of a folded column at least."""


class Listing:
    """Rows under their headings; one heading and its value a line where the terminal is too narrow.

    What names something is never broken: it is there to be read, and to be copied into the next
    command. What is read as a text may be folded.
    """

    def __init__(self, *headings: str, folded: Collection[str] = ()) -> None:
        """`folded` has the headings of columns that are texts."""
        self._headings = headings
        self._folded = folded
        self._rows: list[tuple[tuple[RenderableType, ...], str | None]] = []

    def add_row(self, *cells: RenderableType, style: str | None = None) -> None:
        """A cell for each heading."""
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich's protocol of this name."""
        needed = sum(self._widths(console, options)) + _GAP * (len(self._headings) - 1)
        if needed <= options.max_width:
            yield self._side_by_side()
        else:
            yield from self._one_below_another()

    def _widths(self, console: Console, options: ConsoleOptions) -> Iterator[int]:
        """What each column needs."""
        unbounded = options.update(max_width=options.max_width + 10_000)
        for number, heading in enumerate(self._headings):
            cells = chain([heading], (cells[number] for cells, _ in self._rows))
            widest = max(Measurement.get(console, unbounded, cell).maximum for cell in cells)
            yield min(widest, _FOLDED) if heading in self._folded else widest

    def _side_by_side(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in self._headings:
            table.add_column(heading, overflow="fold", no_wrap=heading not in self._folded)
        for cells, style in self._rows:
            table.add_row(*cells, style=style)
        return table

    def _one_below_another(self) -> Iterator[RenderableType]:
        for number, (cells, style) in enumerate(self._rows):
            if number:
                yield ""
            row = Table(box=None, pad_edge=False, show_header=False)
            row.add_column(style="bold", no_wrap=True)
            row.add_column(overflow="fold")
            for heading, cell in zip(self._headings, cells, strict=True):
                row.add_row(heading, cell, style=style)
            yield row


def versions(libraries: Mapping[str, str]) -> str:
    """Names and versions of libraries, as one reads them."""
    return ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
