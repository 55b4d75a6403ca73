"""A progress bar on stderr for what is loading. It is gone when the work is done."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from sllm.cli.common import diagnostics
from sllm.client.enums import LoadPhase
from sllm.client.events import Progress as Loaded

LABELS = {
    LoadPhase.IMPORT: "importing from the source",
    LoadPhase.READ: "reading into memory",
    LoadPhase.INIT: "starting the engine",
    LoadPhase.UNKNOWN: "loading",
}


class LoadingBar:
    """Shows itself with the first `show`, and only to a terminal."""

    def __init__(self) -> None:
        console = diagnostics()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", visible=False, total=None)

    def show(self, loaded: Loaded) -> None:
        """How far the work is."""
        if not self._bar.live.is_started:
            self._bar.start()
        self._bar.update(
            self._task,
            description=LABELS[loaded.phase],
            completed=loaded.loaded_bytes,
            total=loaded.total_bytes or None,
            visible=True,
        )

    def hide(self) -> None:
        """The work is done."""
        self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hide()
