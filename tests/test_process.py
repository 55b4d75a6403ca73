"""What processes do to themselves, each looked at in one of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id

from sllm.process import give_way

FREEZES = """
import gc, weakref
from sllm.process import leave_out_of_collections

class Cycle:
    def __init__(self):
        self.itself = self

leave_out_of_collections()
later = weakref.ref(Cycle())
gc.collect()
print(gc.get_freeze_count() > 1000, later() is None)
"""


def test_collections_leave_out_what_was_there_and_nothing_else() -> None:
    command = [sys.executable, "-c", FREEZES]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60.0)
    assert told.stdout.split() == ["True", "True"]


def test_a_thread_that_gives_way_already_takes_nothing_back() -> None:
    def niceness() -> int:
        os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)  # which anybody may, once
        give_way()
        return os.getpriority(os.PRIO_PROCESS, get_native_id())

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(niceness).result() == 19
