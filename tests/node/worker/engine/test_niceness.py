"""Who goes before an engine's threads, and whether they may come back."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sllm.node.worker.engine.niceness import (
    BACKGROUND_NICENESS,
    NICENESS,
    Standing,
    may_go_behind,
    stand_back,
)


def niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


@contextmanager
def engine_threads(*levels: int | None) -> Iterator[list[int]]:
    """Ids of threads of which each stands back, or has the niceness given."""
    end, begun = threading.Event(), threading.Barrier(len(levels) + 1)
    ids: list[int] = []

    def work(level: int | None) -> None:
        stand_back()
        if level is not None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), level)
        ids.append(threading.get_native_id())
        begun.wait(30)
        end.wait(30)

    threads = [threading.Thread(target=work, args=(level,)) for level in levels]
    for thread in threads:
        thread.start()
    begun.wait(30)
    yield sorted(ids, key=niceness)
    end.set()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(
    not may_go_behind(), reason="all has a niceness, or none may come back: see setpriority(2)"
)
def test_an_engines_threads_go_and_come_back_and_no_other() -> None:
    standing, here = Standing(), niceness(threading.get_native_id())
    with engine_threads(None, None, 19) as (*engines, other):
        for _ in range(2):
            standing.set(behind=True)
            assert {*map(niceness, engines)} == {BACKGROUND_NICENESS}
            standing.set(behind=False)
            assert {*map(niceness, engines)} == {NICENESS}
        assert niceness(other) == 19
        assert niceness(threading.get_native_id()) == here


def test_without_the_right_to_come_back_none_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer to whoever has no CAP_SYS_NICE."""
    set_priority = os.setpriority

    def only_down(which: int, who: int, priority: int) -> None:
        if priority < os.getpriority(which, who):
            raise PermissionError
        set_priority(which, who, priority)

    monkeypatch.setattr(os, "setpriority", only_down)
    standing = Standing()
    with engine_threads(None) as (engine,):
        standing.set(behind=True)
        assert niceness(engine) == NICENESS
        standing.set(behind=False)
        assert niceness(engine) == NICENESS
