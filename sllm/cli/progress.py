"""A progress bar on stderr for what is loading. It is gone when the work is done."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from sllm.cli.common import diagnostics
from sllm.client.types.enums import LoadPhase
from sllm.client.types.events import Progress as Loaded

LABELS = {
    LoadPhase.IMPORT: "importing from the source",
    LoadPhase.READ: "reading into memory",
    LoadPhase.COPY: "copying to the device",
    LoadPhase.INIT: "starting the engine",
    LoadPhase.UNKNOWN: "loading",
}


class _Bar:
    """Shows itself when there is something to show, and only to a terminal."""

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

    def _update(self, label: str, done: int, total: int) -> None:
        if not self._bar.live.is_started:
            self._bar.start()
        self._bar.update(
            self._task, description=label, completed=done, total=total or None, visible=True
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


class LoadingBar(_Bar):
    """How far a node's load is."""

    def show(self, loaded: Loaded) -> None:
        """How far the work is."""
        self._update(LABELS[loaded.phase], loaded.loaded_bytes, loaded.total_bytes)


class BytesBar(_Bar):
    """How far this process's own work is."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def show(self, done: int, total: int) -> None:
        """How many bytes are done; from any thread."""
        self._update(self._label, done, total)
