"""What callers of the control plane's own methods can rely on."""

import asyncio
from pathlib import Path

from sllm.clock import ManualClock
from sllm.control.cluster.specs import DeploymentState
from sllm.control.config import ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.state.sqlite import SqliteStore
from tests.control.shapes import deployment

SECONDS = 5.0


async def test_a_watcher_misses_no_change_while_it_is_told_of_another(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    plane = ControlPlane(ControlConfig(tmp_path), store, ManualClock())
    plane.state.set_deployment(deployment("tiny"))
    watch = plane.watch("tiny")
    async with asyncio.timeout(SECONDS):
        told = await anext(watch)
        assert told.state is DeploymentState.PREPARING

        plane.state.unprepared["tiny"] = "nowhere to be found"
        plane.state.changes.notify("tiny")  # nobody waits at this moment

        assert (await anext(watch)).state is DeploymentState.FAILED
    await plane.close()
