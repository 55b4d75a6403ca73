"""The control plane by itself, as its docstring shows it: without a server, and without a node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.control.config import ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.orchestration.membership import Answer
from sllm.control.types.reports import Full, Report
from tests.control.clusters import stores_of
from tests.control.shapes import deployment, facts

SECONDS = 20.0


async def _reports() -> AsyncIterator[Report]:
    yield Report("n1", 1, Full(facts()))
    yield Report("n1", 1, None)


async def test_nodes_report_and_requests_wait_without_any_server(tmp_path: Path) -> None:
    config = ControlConfig(tmp_path)
    plane = ControlPlane(config, *stores_of(config), MonotonicClock())
    await plane.load()
    loop = asyncio.create_task(plane.run())
    async with asyncio.timeout(SECONDS):
        stream = plane.membership.open()
        answers = [answer async for answer in plane.membership.follow(stream, _reports())]
        assert answers == [(Answer.ACK, 1), (Answer.ACK, 1)]
        assert list(plane.state.fleet.nodes) == ["n1"]
        plane.membership.leave(stream)
        assert not plane.state.fleet.nodes

        plane.state.set_deployment(deployment("tiny"))
        ticket = plane.router.take(pb.GenerateRequest(deployment="tiny", text="hello"), None)
        events = plane.router.events(ticket)
        assert (await anext(events)).HasField("queued")
        plane.end_streams()
        with pytest.raises(errors.ShuttingDown):
            await anext(events)
        loop.cancel()
        await plane.close()
