import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from make_models import make_model
from serverlessllm.v1.inference_service_pb2 import GenerateRequest

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.instances import zygote_client
from sllm.node.instances.forked import Exit, ForkedWorker
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.watchdog import Patience, watch
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from sllm.node.instances.zygote_process import READY_SECONDS
from sllm.node.tiers.pool import Pool
from tests.processes import descendants
from tests.support import assert_eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Children = Callable[[], set[int]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    """One for all tests: each takes seconds to start."""
    pool = Pool(1 << 20, 4096)
    zygote = Zygote("transformers")
    zygote.start(pool.fd)
    yield zygote
    await zygote.close()
    pool.close()


@pytest.fixture
def children() -> Children:
    """Asks for the processes that have come since the test began."""
    others = descendants()
    return lambda: descendants() - others


async def test_it_tells_when_it_is_ready(zygote: Zygote) -> None:
    await assert_eventually(lambda: zygote.is_ready, READY_SECONDS)


async def test_a_worker_that_cannot_serve_fails_its_fork(
    zygote: Zygote, tmp_path: Path, children: Children
) -> None:
    with pytest.raises(errors.StartFailed, match="ended"):
        await zygote.fork(WorkerSpec("i", tmp_path / "no" / "such" / "directory" / "s.sock"))
    await assert_eventually(lambda: not children())


async def test_a_fork_that_nobody_waits_for_any_more_is_ended(
    zygote: Zygote, tmp_path: Path, children: Children
) -> None:
    forking = asyncio.create_task(zygote.fork(WorkerSpec("i", tmp_path / "s.sock")))
    await asyncio.sleep(0)
    forking.cancel()
    await asyncio.wait([forking])
    last = await zygote.fork(WorkerSpec("last", tmp_path / "last.sock"))
    await assert_eventually(lambda: children() == {last.pid})
    await assert_eventually(lambda: list(tmp_path.iterdir()) == [tmp_path / "last.sock"])


async def test_the_socket_of_a_worker_that_nobody_waits_for_goes_with_it(
    zygote: Zygote, tmp_path: Path, children: Children
) -> None:
    """Wherever in its start it was given up."""
    for number in range(8):
        forking = asyncio.create_task(zygote.fork(WorkerSpec("i", tmp_path / f"{number}.sock")))
        await asyncio.wait([forking], timeout=0.01 * number)
        forking.cancel()
        await asyncio.wait([forking])
        if not forking.cancelled():
            os.kill(forking.result().pid, signal.SIGKILL)
    await assert_eventually(lambda: not children())
    await assert_eventually(lambda: not list(tmp_path.iterdir()))


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process in the place of a worker's."""
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


async def test_one_that_serves_just_as_it_is_given_up_is_ended(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    worker = ForkedWorker(ProcessHandle(sleeper.pid))
    waiting = asyncio.create_task(zygote_client._until_serving(worker))
    await asyncio.sleep(0)
    worker.serving.set_result(None)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await asyncio.wait_for(worker.process.ended, 10.0)


async def test_models_are_described_in_a_process_of_their_own(
    zygote: Zygote, tmp_path: Path, children: Children
) -> None:
    make_model("tiny-opt", tmp_path)
    model = await zygote.describe(tmp_path, "float16")
    assert model.architecture == "OPTForCausalLM"
    assert model.context_tokens == 512
    assert model.kv_bytes_per_token == 2 * 3 * 128 * 2
    assert await zygote.describe(tmp_path, "float16") == model
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(errors.UnsupportedModel, match=r"mamba|Mamba"):
        await zygote.describe(tmp_path, None)
    await assert_eventually(lambda: not children())


async def test_a_model_that_could_not_be_built_is_refused_by_its_number(
    zygote: Zygote, tmp_path: Path, children: Children
) -> None:
    """A hundred million layers, each of which would be built, take neither time nor memory."""
    make_model("tiny-opt", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 100_000_000
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UnsupportedModel, match="num_hidden_layers is 100000000"):
        await zygote.describe(tmp_path, None)
    await assert_eventually(lambda: not children())


async def test_it_says_why_the_engine_could_not_use_a_device(
    zygote: Zygote, children: Children
) -> None:
    problem = await zygote.probe({"CUDA_VISIBLE_DEVICES": "GPU-none"})
    assert re.match(
        rf"torch {re.escape(torch.__version__)} (was built without|cannot use)", problem
    )
    await assert_eventually(lambda: not children())


async def test_a_zygote_that_dies_takes_its_workers_along_and_is_replaced(
    zygote: Zygote, tmp_path: Path, children: Children
) -> None:
    workers = [await zygote.fork(WorkerSpec(f"i{n}", tmp_path / f"{n}.sock")) for n in range(2)]
    assert children() == {worker.pid for worker in workers}
    os.kill(psutil.Process(workers[0].pid).ppid(), signal.SIGKILL)
    ends = await asyncio.wait_for(asyncio.gather(*(w.exited for w in workers)), 10)
    assert ends == [Exit(signal.SIGKILL, orphaned=True)] * 2
    await assert_eventually(lambda: not children())
    again = await zygote.fork(WorkerSpec("i3", tmp_path / "3.sock"))
    assert psutil.pid_exists(again.pid)


async def test_nothing_is_left_behind(tmp_path: Path, children: Children) -> None:
    files = set(os.listdir("/proc/self/fd"))
    pool = Pool(1 << 20, 4096)
    zygote = Zygote("transformers")
    zygote.start(pool.fd)
    await zygote.fork(WorkerSpec("i", tmp_path / "s.sock"))
    await zygote.close()
    pool.close()
    await assert_eventually(lambda: not children())
    assert set(os.listdir("/proc/self/fd")) == files


# --- workers that hang --------------------------------------------------------------------------


async def asked(zygote: Zygote, socket: Path) -> tuple[Worker, OutputStream]:
    """A worker that has a request, and the request's outputs."""
    worker = Worker(await zygote.fork(WorkerSpec("i", socket)), socket)
    request = GenerateRequest(request_id="r")
    outputs = OutputStream(request)
    worker.submit(request, outputs)
    return worker, outputs


async def test_a_worker_that_does_not_answer_is_ended(zygote: Zygote, tmp_path: Path) -> None:
    worker, outputs = await asked(zygote, tmp_path / "s.sock")
    await worker.wait_until_serving()
    os.kill(worker.pid, signal.SIGSTOP)
    await asyncio.wait_for(watch(worker, Patience(0.1, looks_unanswered=3), MonotonicClock()), 10)
    with pytest.raises(errors.WorkerDied, match=r"did not answer for 0\.3 s or more"):
        await asyncio.wait_for(outputs.take(), 10)
    await worker.stop()


async def test_a_worker_whose_engine_stands_still_is_ended(zygote: Zygote, tmp_path: Path) -> None:
    worker, outputs = await asked(zygote, tmp_path / "s.sock")  # there is no engine to take it
    await asyncio.wait_for(watch(worker, Patience(0.1, looks_unmoved=2), MonotonicClock()), 10)
    with pytest.raises(errors.WorkerDied, match=r"made no step for 0\.2 s"):
        await asyncio.wait_for(outputs.take(), 10)
    await worker.stop()


async def test_an_idle_worker_may_be_silent(zygote: Zygote, tmp_path: Path) -> None:
    worker, _ = await asked(zygote, tmp_path / "s.sock")
    worker.release("r")
    os.kill(worker.pid, signal.SIGSTOP)
    patience = Patience(0.01, looks_unanswered=1, looks_unmoved=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch(worker, patience, MonotonicClock()), 0.5)
    assert not worker.gone.done()
    os.kill(worker.pid, signal.SIGCONT)
    await worker.stop()
