"""How zygotes are started, and what becomes of calls when one is slow, silent or lost."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sllm import errors
from sllm.node.instances import zygote_process
from sllm.node.instances.zygote_client import TRIES, WorkerSpec, Zygote
from sllm.node.tiers.pool import Pool
from tests.node.instances import pretender
from tests.processes import descendants
from tests.support import assert_eventually

FORK_HANDLERS = """
import ctypes, os, uvloop
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.pool import Pool

ran = []
handler = ctypes.CFUNCTYPE(None)(lambda: ran.append(None))
ctypes.CDLL(None).__register_atfork(handler, None, None, None)

async def start():
    pool, zygote = Pool(1 << 20, 4096), Zygote("transformers")
    zygote.start(pool.fd)
    await zygote.close()
    pool.close()

uvloop.run(start())
started = len(ran)
if not os.fork():
    os._exit(0)
print("handlers:", started, len(ran))
"""


def test_no_fork_handlers_run_where_a_zygote_is_started() -> None:
    """gRPC has some, which may crash while its threads are at work; uvloop's forks run them."""
    command = [sys.executable, "-c", FORK_HANDLERS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "handlers: 0 1" in done.stdout


class Plan:
    """Has every zygote behave as it says; see `pretender`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, behaviours: Sequence[str]) -> None:
        self.path.write_text("\n".join(behaviours))

    @property
    def left(self) -> int:
        """Behaviours that have not been taken off."""
        return len(self.path.read_text().splitlines())


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    plan = tmp_path / "plan"
    monkeypatch.setattr(zygote_process, "_COMMAND", (sys.executable, pretender.__file__, str(plan)))
    return Plan(plan)


@asynccontextmanager
async def zygote_that(plan: Plan, *behaviours: str) -> AsyncIterator[Zygote]:
    """One that behaves so, and where it is replaced, those after it, each in its way."""
    plan.write(behaviours)
    others = descendants()
    pool, zygote = Pool(1 << 20, 4096), Zygote("transformers")
    try:
        zygote.start(pool.fd)
        yield zygote
    finally:
        await zygote.close()
        pool.close()
        await assert_eventually(lambda: descendants() <= others)


@pytest.mark.parametrize("loss", ["dies before it is ready", "dies when it is asked"])
async def test_a_call_whose_zygote_is_lost_is_made_again(plan: Plan, loss: str) -> None:
    async with zygote_that(plan, *[loss] * (TRIES - 1), "describes") as zygote:
        assert await zygote.describe(Path("/"), None) == pretender.MODEL


async def test_a_fork_whose_zygote_is_lost_is_made_again(plan: Plan, tmp_path: Path) -> None:
    async with zygote_that(plan, "forks and dies", "forks") as zygote:
        worker = await zygote.fork(WorkerSpec("i", tmp_path / "s.sock"))
        assert worker.serving.done()
        assert not worker.exited.done()


@pytest.mark.parametrize("loss", ["dies before it is ready", "dies when it is asked"])
async def test_zygotes_that_are_always_lost_fail_a_call(plan: Plan, loss: str) -> None:
    async with zygote_that(plan, loss) as zygote:
        with pytest.raises(errors.StartFailed, match=f"{TRIES} zygotes of .* ended") as failed:
            await zygote.describe(Path("/"), None)
        assert isinstance(failed.value.__cause__, zygote_process.ZygoteLost)


async def test_a_slow_zygote_fails_nobody_who_waits(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote_process, "ANSWER_SECONDS", pretender.SLOW_SECONDS / 2)
    async with zygote_that(plan, "is slow") as zygote:
        assert not zygote.is_ready
        found = await asyncio.gather(*(zygote.describe(Path("/"), None) for _ in range(5)))
        assert found == [pretender.MODEL] * 5


async def test_a_zygote_that_never_gets_ready_is_ended_and_replaced(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(zygote_process, "READY_SECONDS", 0.2)
        async with zygote_that(plan, "is never ready", "describes") as zygote:
            await assert_eventually(lambda: plan.left == 1)
            with pytest.raises(errors.StartFailed, match=r"not ready within 0\.2 s"):
                await zygote.describe(Path("/"), None)
            patch.undo()
            assert await zygote.describe(Path("/"), None) == pretender.MODEL


async def test_a_zygote_that_does_not_answer_fails_the_call(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with zygote_that(plan, "is mute") as zygote:
        await assert_eventually(lambda: zygote.is_ready)
        monkeypatch.setattr(zygote_process, "ANSWER_SECONDS", 0.2)
        with pytest.raises(errors.StartFailed, match="no answer"):
            await zygote.describe(Path("/"), None)


async def test_a_worker_may_serve_before_the_zygote_tells_of_it(plan: Plan, tmp_path: Path) -> None:
    async with zygote_that(plan, "tells late of a fork") as zygote:
        worker = await zygote.fork(WorkerSpec("i", tmp_path / "s.sock"))
        assert worker.serving.done()


async def test_a_closed_zygote_starts_no_other(plan: Plan) -> None:
    async with zygote_that(plan, "describes") as zygote:
        await zygote.close()
        with pytest.raises(errors.ShuttingDown):
            await zygote.describe(Path("/"), None)


async def test_what_cannot_be_started_is_told(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote_process, "_COMMAND", ("/no/such/program",))
    with pytest.raises(errors.StartFailed, match="no zygote can be started"):
        Zygote("transformers").start(0)
