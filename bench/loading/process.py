"""Contenders in processes of their own, forked from one that has imported the libraries.

What is timed is loading, not imports: every process loads a tiny model first, and compares it
with what it should be.
"""

import importlib.util
import multiprocessing
import resource
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.loading.contender import Group, Load, Measurement, Outcome, Skipped, Tensors
from bench.loading.groups import GROUPS
from bench.loading.models import Model, read_weights
from bench.loading.resident import make_resident

TIMEOUT_SECONDS = 300.0
PRELOADED = ["bench.loading.preload"]


class Contenders:
    """The process of a group."""

    def __init__(self, group: Group, tiny: Model, model: Model) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, group.names, tiny, model), daemon=True
        )
        self._process.start()
        theirs.close()

    def ready(self) -> Skipped | None:
        """Waits until they are prepared; says why if they are not."""
        answer = self._receive()
        assert answer is None or isinstance(answer, Skipped)
        return answer

    def prepare(self, name: str) -> Skipped | None:
        """Has a contender do what comes before its load."""
        answer = self._ask("prepare", name)
        assert answer is None or isinstance(answer, Skipped)
        return answer

    def measure(self, name: str) -> Outcome:
        """Has a contender load the model."""
        answer = self._ask("measure", name)
        assert isinstance(answer, Measurement | Skipped)
        return answer

    def _ask(self, what: str, name: str) -> object:
        try:
            self._connection.send((what, name))
        except OSError:
            return Skipped("its process died")
        return self._receive()

    def _receive(self) -> object:
        if not self._connection.poll(TIMEOUT_SECONDS):
            self._process.kill()
            return Skipped(f"did nothing for {TIMEOUT_SECONDS:.0f} s")
        try:
            received: object = self._connection.recv()
        except (EOFError, OSError):
            return Skipped("its process died")
        return received

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


@contextmanager
def contenders(group: Group, tiny: Model, model: Model) -> Iterator[Contenders]:
    """The process of a group, for as long as the block lasts."""
    process = Contenders(group, tiny, model)
    try:
        yield process
    finally:
        process.close()


def _serve(connection: Connection, names: tuple[str, ...], tiny: Model, model: Model) -> None:
    group = GROUPS[names]
    try:
        problem = _problem(group, model) or _warm_up(group, tiny)
        if problem:
            connection.send(Skipped(problem))
            return
        base = _reset_peak()
        with group.prepare(model) as loads:
            connection.send(None)
            _answer(connection, loads, base)
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        connection.send(Skipped(f"{type(error).__name__}: {error}"))


def _problem(group: Group, model: Model) -> str:
    if importlib.util.find_spec(group.library) is None:
        return f"{group.library} is not installed; `pip install -e '.[bench]'` does it"
    return "" if group.fits(model) else "not for such a model"


def _warm_up(group: Group, tiny: Model) -> str:
    """Loads a tiny model in every way; says so if one of them is wrong."""
    expected = read_weights(tiny)
    with group.prepare(tiny) as loads:
        for name, load in loads.items():
            load.before()
            tensors = load.run()
            if tensors and not _same(tensors, expected):
                return f"{name} gives wrong tensors"
            make_resident(tensors, load.in_page_cache)
            tensors.clear()
            load.after()
    return ""


def _same(found: Tensors, expected: Mapping[str, torch.Tensor]) -> bool:
    return set(found) == set(expected) and all(
        torch.equal(found[name].view(torch.int16), tensor.view(torch.int16))
        for name, tensor in expected.items()
    )


def _answer(connection: Connection, loads: Mapping[str, Load], base: int) -> None:
    while True:
        what, name = connection.recv()
        if what == "prepare":
            loads[name].before()
            connection.send(None)
        else:
            _reset_peak()
            connection.send(_measure(loads[name], base))
            loads[name].after()


def _measure(load: Load, base: int) -> Measurement:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    tensors = load.run()
    called = time.perf_counter()
    make_resident(tensors, load.in_page_cache)
    resident = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Measurement(
        call_seconds=called - began,
        seconds=resident - began,
        cpu_seconds=used.ru_utime + used.ru_stime - usage.ru_utime - usage.ru_stime,
        peak_bytes=_status("VmHWM") - base,
        faults=used.ru_minflt + used.ru_majflt - usage.ru_minflt - usage.ru_majflt,
    )


def _reset_peak() -> int:
    """Has the kernel measure the peak of memory anew; returns what is resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(field)
