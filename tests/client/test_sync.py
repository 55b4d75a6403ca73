"""What only the client without an event loop has to get right: threads, and its end."""

import asyncio
import gc
import inspect
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from opentelemetry import context, propagate
from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from sllm import errors
from sllm.client.sync import BackgroundLoop
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import QUEUED, generation
from tests.processes import started
from tests.support import wait_until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
METHODS = {
    name for name, _ in inspect.getmembers(sllm.AsyncClient, inspect.isfunction) if name[0] != "_"
}


@pytest.mark.parametrize("method", sorted(METHODS - {"close"}))
def test_both_clients_take_the_same_arguments(method: str) -> None:
    ours = inspect.signature(getattr(sllm.Client, method))
    theirs = inspect.signature(getattr(sllm.AsyncClient, method))
    assert ours.parameters == theirs.parameters
    assert getattr(sllm.Client, method).__doc__


def test_threads_share_a_client(control: FakeControl) -> None:
    for _ in range(16):
        control.reply("Generate", *generation())

    with sllm.Client(control.address) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.complete("tiny", "Once"), range(16)))

    assert {result.text for result in results} == {"Once upon"}


def test_the_callers_trace_goes_along(control: FakeControl) -> None:
    control.reply("ListNodes", pb.ListNodesResponse())
    control.reply("Generate", *generation())
    token = context.attach(propagate.extract({"traceparent": TRACEPARENT}))

    with sllm.Client(control.address) as client:
        client.nodes()
        client.complete("tiny", "Once")

    context.detach(token)
    for method in ("ListNodes", "Generate"):
        assert control.metadata[method][0]["traceparent"] == TRACEPARENT


def test_a_closed_client_says_so(control: FakeControl) -> None:
    client = sllm.Client(control.address)
    client.close()
    client.close()

    with pytest.raises(RuntimeError, match="closed"):
        client.nodes()


def test_a_dropped_client_ends_its_thread(control: FakeControl) -> None:
    before = set(threading.enumerate())
    client = sllm.Client(control.address)
    (its_own,) = set(threading.enumerate()) - before
    del client
    gc.collect()

    wait_until(lambda: not its_own.is_alive())


def test_a_client_that_is_collected_in_its_own_thread_ends_it(control: FakeControl) -> None:
    done = pb.PrefetchDone(node_id="n-1", tier=types.TIER_DRAM)
    loading = types.Loading(phase=types.LOAD_PHASE_READ)
    control.reply("Prefetch", pb.PrefetchResponse(loading=loading), pb.PrefetchResponse(done=done))
    before = set(threading.enumerate())
    client = sllm.Client(control.address)
    (its_own,) = set(threading.enumerate()) - before
    loops: list[asyncio.AbstractEventLoop] = []
    client.prefetch("tiny", on_progress=lambda _: loops.append(asyncio.get_running_loop()))
    cycle: list[object] = [client]
    cycle.append(cycle)
    del client, cycle
    loops.pop().call_soon_threadsafe(gc.collect)

    wait_until(lambda: not its_own.is_alive())


def test_a_callback_that_calls_its_client_is_told_and_does_not_hang(control: FakeControl) -> None:
    control.reply("Prefetch", pb.PrefetchResponse(loading=types.Loading()), Silence())
    with (
        sllm.Client(control.address) as client,
        pytest.raises(RuntimeError, match="a callback cannot wait for the client"),
    ):
        client.prefetch("tiny", on_progress=lambda _: client.delete("tiny"))


@pytest.mark.parametrize(("method", "arguments"), [("nodes", ()), ("complete", ("tiny", "Once"))])
def test_closing_ends_what_other_threads_wait_for(
    control: FakeControl, method: str, arguments: tuple[str, ...]
) -> None:
    control.reply("ListNodes", Silence())
    control.reply("Generate", QUEUED, Silence())
    client = sllm.Client(control.address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(getattr(client, method), *arguments)
        wait_until(lambda: any(control.requests.values()))
        client.close()
        with pytest.raises(errors.Cancelled, match="closed"):
            waiting.result(10)


def test_what_comes_while_the_loop_ends_is_not_left_waiting() -> None:
    loop, ending, over = BackgroundLoop(), threading.Event(), threading.Event()

    async def ends_slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.to_thread(over.wait, 10)

    loop.begin(ends_slowly())
    with ThreadPoolExecutor(2) as pool:
        stopping = pool.submit(loop.stop)
        assert ending.wait(10)
        late = pool.submit(loop.run, asyncio.Event().wait())
        with pytest.raises(RuntimeError, match="closed"):
            late.result(10)
        over.set()
        stopping.result(10)


def test_what_an_interrupt_leaves_with_nobody_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or Python says of it, as the program ends, that it was never awaited."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    async def wait() -> None:
        await asyncio.Event().wait()

    loop, work = BackgroundLoop(), wait()
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(work)
    wait_until(lambda: inspect.getcoroutinestate(work) == inspect.CORO_CLOSED)
    loop.stop()


def test_what_is_watched_may_be_left_after_its_client(control: FakeControl) -> None:
    control.reply("WatchCluster", pb.WatchClusterResponse(full=pb.ClusterState()), Silence())
    client = sllm.Client(control.address)
    watch = client.watch()
    next(watch)
    client.close()
    watch.close()  # type: ignore[attr-defined]  # an iterator, to its callers


def test_a_stream_keeps_its_client(control: FakeControl) -> None:
    control.reply("Generate", *generation())

    stream = sllm.Client(control.address).generate("tiny", "Once")
    gc.collect()

    assert stream.result().text == "Once upon"


LEFT_OPEN = """
import sys
import sllm
stream = sllm.Client(sys.argv[1]).generate("tiny", "Once")
next(stream)
print("reading", flush=True)
{then}
"""


def _program(control: FakeControl, then: str) -> AbstractContextManager[subprocess.Popen[str]]:
    control.reply("Generate", QUEUED, Silence())
    script = LEFT_OPEN.format(then=then)
    return started([sys.executable, "-c", script, control.address], stderr=subprocess.PIPE)


def test_a_program_that_ends_with_a_stream_open_ends_quietly(control: FakeControl) -> None:
    with _program(control, then="") as program:
        out, err = program.communicate(timeout=60)

    assert (program.returncode, out, err) == (0, "reading\n", "")
    wait_until(lambda: control.abandoned == ["Generate"])


def test_an_interrupt_ends_the_wait(control: FakeControl) -> None:
    with _program(control, then="next(stream)") as program:
        assert program.stdout
        assert program.stdout.readline() == "reading\n"
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)

    assert err.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: control.abandoned == ["Generate"])
