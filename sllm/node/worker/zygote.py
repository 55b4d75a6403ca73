"""The process that workers are forked from: it has imported everything, and does nothing else.

There is one for each engine.

It stays single-threaded, and touches neither CUDA nor a gRPC object, so that what a fork copies is
whole. Importing takes seconds; a fork takes milliseconds.

Run as `python -m sllm.node.worker`. Ends when its socket is closed, and its workers with it.
"""

import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import transformers

from sllm import machine
from sllm.errors import Internal, SllmError, StartFailed, UnsupportedModel
from sllm.node.worker import main
from sllm.node.worker.backends.choosing import backend_of
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.messages import (
    MAX_PACKET_BYTES,
    AdapterDescribed,
    Describe,
    DescribeAdapter,
    Described,
    Exited,
    Failed,
    Fork,
    Forked,
    Message,
    Probe,
    Probed,
    Ready,
    Serving,
    from_packet,
    to_packet,
)
from sllm.node.worker.model.device_weights import device_problem
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.trial.adapters import try_adapter
from sllm.node.worker.trial.trial import try_model
from sllm.process import adopt_orphans, die_with_parent

TRIAL_SECONDS = 30
"""Of a processor's time that trying a model may take."""
TRIAL_TIMEOUT = 55.0
"""Seconds that it may take on a busy machine; agents wait for longer."""
TRIAL_BYTES = 4 << 30
"""Memory that trying a model may take, beside what it shares with the zygote."""
THREADS_TIMEOUT = 10.0
"""Seconds that threads have to end which were started on the way."""


class Zygote:
    """Forks children when it is told to, and tells when they end."""

    def __init__(self, agent: socket.socket, pool_fd: int, backend: Backend) -> None:
        self._backend = backend
        self._agent = agent
        self._pool_fd = pool_fd
        self._threads = machine.processors()  # once: it reads a dozen files
        self._workers: set[int] = set()
        self._answerers: dict[int, int] = {}
        """Children that answer a call and end, and the call of each."""
        self._wakeup, self._wakeup_end = socket.socketpair()

    def serve(self) -> None:
        """Works until the agent goes away."""
        with self._wakeup, self._wakeup_end:
            self._watch_children()
            self._send(Ready())
            self._work()
            self._end_children()
            signal.set_wakeup_fd(-1)

    def _work(self) -> None:
        while True:
            readable, _, _ = select.select([self._agent, self._wakeup], [], [])
            if self._wakeup in readable:
                self._wakeup.recv(4096)
                self._reap()
            if self._agent in readable:
                packet = self._agent.recv(MAX_PACKET_BYTES)
                if not packet:
                    return
                self._take(from_packet(packet))

    def _watch_children(self) -> None:
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _take(self, message: Message) -> None:
        assert isinstance(message, Fork | Describe | DescribeAdapter | Probe), (
            f"the agent says {message}"
        )
        try:
            self._answer(message)
        except OSError as error:
            # The system has no process or memory left for a child. All others go on.
            refusal = StartFailed(f"the zygote could not fork: {error}")
            self._send(failure(message.call, refusal))

    def _answer(self, message: Fork | Describe | DescribeAdapter | Probe) -> None:
        match message:
            case Fork(call):
                pid = self._fork(lambda: self._run_worker(message))
                self._workers.add(pid)
                self._send(Forked(call, pid))
            case Describe(call):
                pid = self._fork(lambda: _describe(message, self._agent, self._backend))
                self._answerers[pid] = call
            case DescribeAdapter(call):
                pid = self._fork(lambda: _describe_adapter(message, self._agent, self._backend))
                self._answerers[pid] = call
            case Probe(call):
                pid = self._fork(lambda: _probe(message, self._agent))
                self._answerers[pid] = call

    def _run_worker(self, fork: Fork) -> int:
        return main.run(
            fork,
            self._pool_fd,
            self._backend,
            self._threads,
            self._tell_serving,
            self._agent.close,
        )

    def _fork(self, work: Callable[[], int]) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            self._become_child(parent)
            status = work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # nothing of the zygote's may run in a child

    def _become_child(self, parent: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._wakeup.close()
        self._wakeup_end.close()
        die_with_parent(parent)

    def _tell_serving(self) -> None:
        """Called in a worker, which has no more to say to the agent here."""
        self._send(Serving(os.getpid()))
        self._agent.close()

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # there is none any more
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if not pid:
                    return
                self._note_end(pid, status, usage.ru_utime + usage.ru_stime)

    def _note_end(self, pid: int, status: int, seconds: float) -> None:
        if pid in self._workers:
            self._workers.discard(pid)
            self._send(Exited(pid, status))
        elif pid in self._answerers:  # all others were forked by a worker that has gone
            call = self._answerers.pop(pid)
            if status:
                self._send(failure(call, ended_badly(status, seconds)))

    def _end_children(self) -> None:
        for pid in (*self._workers, *self._answerers):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:  # the kernel ends whom they have forked
                os.wait()

    def _send(self, message: Message) -> None:
        try:
            self._agent.send(to_packet(message))
        except (BrokenPipeError, ConnectionResetError):
            return  # the agent is gone; the next read says so


def failure(call: int, error: SllmError) -> Failed:
    """The answer to a call that failed."""
    return Failed(call, error.code, error.reason, error.message, error.metadata)


def _describe(request: Describe, agent: socket.socket, backend: Backend) -> int:
    bound_trial()
    answer: Described | Failed
    try:
        with refusing("the model could not be tried"):
            directory = Path(request.directory)
            verdict = try_model(
                directory,
                request.dtype,
                request.compared,
                backend,
                request.parsers,
                takes_adapters=request.takes_adapters,
                ranks=request.ranks,
                on_disk=request.on_disk,
            )
        answer = Described(request.call, verdict.model, verdict.features, verdict.unused)
    except SllmError as error:
        answer = failure(request.call, error)
    agent.send(to_packet(answer))
    return 0


def _describe_adapter(request: DescribeAdapter, agent: socket.socket, backend: Backend) -> int:
    bound_trial()
    answer: AdapterDescribed | Failed
    try:
        with refusing("the adapter could not be held against its base"):
            paths = Path(request.directory), Path(request.tensors), Path(request.base)
            verdict = try_adapter(*paths, request.max_rank, backend)
        answer = AdapterDescribed(request.call, verdict.rank, list(verdict.target_modules))
    except SllmError as error:
        answer = failure(request.call, error)
    agent.send(to_packet(answer))
    return 0


def ended_badly(status: int, seconds: float) -> SllmError:
    """Why a child that was to answer a call gave no answer.

    What it tried was a model, in foreign code: that it takes too long, or brings the process down,
    is said of the model.

    Args:
        status: the child's wait status.
        seconds: of a processor's time that it had.
    """
    if not os.WIFSIGNALED(status):
        return Internal(f"a trial ended with exit status {os.waitstatus_to_exitcode(status)}")
    number = os.WTERMSIG(status)
    if number == signal.SIGALRM and seconds < TRIAL_SECONDS / 2:  # others had the processor
        return StartFailed(f"the model could not be tried within {TRIAL_TIMEOUT:.0f} s; try again")
    if number in (signal.SIGALRM, signal.SIGXCPU):
        return UnsupportedModel(
            f"the model could not be tried within {seconds:.0f} s of a processor's time"
        )
    return UnsupportedModel(
        f"trying the model ended the process that did it ({signal.Signals(number).name})"
    )


def bound_trial() -> None:
    """Has the kernel end this process if it takes too long, and refuse it too much memory."""
    transformers.utils.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, TRIAL_TIMEOUT)
    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_SECONDS, resource.RLIM_INFINITY))
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + TRIAL_BYTES, resource.RLIM_INFINITY))


def _probe(request: Probe, agent: socket.socket) -> int:
    os.environ.update(request.environment)
    agent.send(to_packet(Probed(request.call, device_problem())))
    return 0


def await_single_thread() -> None:
    """Waits for the threads that the rehearsal has started; a fork copies only the caller's.

    Raises:
        RuntimeError: Some thread goes on.
    """
    deadline = time.monotonic() + THREADS_TIMEOUT
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError("the zygote has more threads than one, and cannot be forked")
        time.sleep(0.001)


def serve(engine: str, agent_fd: int, pool_fd: int) -> None:
    """Makes this process the zygote of an engine."""
    transformers.utils.logging.disable_progress_bar()
    adopt_orphans()
    backend = backend_of(engine)
    backend.rehearse()
    await_single_thread()
    gc.collect()
    gc.freeze()  # what is there by now stays, and no collection in a child copies its pages
    gc.enable()
    Zygote(socket.socket(fileno=agent_fd), pool_fd, backend).serve()
