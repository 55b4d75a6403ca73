"""What a terminal of some width shows."""

import re
from io import StringIO

from rich.console import Console, RenderableType


def lines(renderable: RenderableType, width: int) -> list[str]:
    """The lines of a terminal that is so many characters wide."""
    console = Console(file=StringIO(), width=width, markup=False, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def rows(renderable: RenderableType, width: int = 500) -> list[list[str]]:
    """The cells of a table, the headings first, where there is room for it."""
    return [re.split(r"\s{2,}", line) for line in lines(renderable, width)]
