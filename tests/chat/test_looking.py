"""Images are looked at in a process that may come to grief, and holds nobody up."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as pillow

from sllm.chat import looking
from sllm.chat.images import Image
from sllm.chat.looking import Looker
from sllm.errors import InvalidImage, NoCapacity
from tests.vision import picture


@pytest.fixture
def looker() -> Iterator[Looker]:
    looker = Looker()
    yield looker
    looker.close()


def pid_of(looker: Looker) -> int:
    assert looker._process is not None
    return looker._process.pid


def test_one_process_looks_at_all(looker: Looker) -> None:
    looker.look([Image(picture(0)), Image(picture(1, form="WEBP"), "image/webp")])
    first = pid_of(looker)
    with pytest.raises(InvalidImage, match=r"images\[1\] is damaged"):
        looker.look([Image(picture()), Image(picture()[:-200])])
    with pytest.raises(InvalidImage, match=r"images\[0\] is said to be image/gif"):
        looker.look([Image(picture(), "image/gif")])
    looker.look([Image(picture())])
    assert pid_of(looker) == first


def test_another_takes_the_place_of_one_that_has_ended(looker: Looker) -> None:
    looker.look([Image(picture())])
    os.kill(pid_of(looker), signal.SIGKILL)
    with pytest.raises(NoCapacity, match="try again"):
        looker.look([Image(picture())])
    looker.look([Image(picture())])


def test_what_takes_a_processor_too_long_is_refused(looker: Looker) -> None:
    looker.look([Image(picture())])
    os.kill(pid_of(looker), signal.SIGXCPU)  # as the kernel does
    with pytest.raises(InvalidImage, match="make them smaller"):
        looker.look([Image(picture())])


def test_one_that_hangs_is_ended(looker: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    looker.look([Image(picture())])
    os.kill(pid_of(looker), signal.SIGSTOP)
    monkeypatch.setattr(looking, "_TIMEOUT", 0.2)
    with pytest.raises(NoCapacity):
        looker.look([Image(picture())])


def test_closing_ends_it_while_it_is_asked(looker: Looker) -> None:
    looker.look([Image(picture())])
    pid = pid_of(looker)
    os.kill(pid, signal.SIGSTOP)
    failures: list[Exception] = []

    def look() -> None:
        try:
            looker.look([Image(picture())])
        except NoCapacity as error:
            failures.append(error)

    asking = threading.Thread(target=look)
    asking.start()
    looker.close()
    asking.join()
    assert failures
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(NoCapacity):
        looker.look([Image(picture())])


def test_nobody_waits_for_python_meanwhile(looker: Looker) -> None:
    """The decoder of WebP holds Python's lock for half a second, of an image of 700 bytes."""
    file = BytesIO()
    pillow.new("RGB", (4_096, 4_096)).save(file, "WEBP", lossless=True)
    asking = threading.Thread(target=looker.look, args=([Image(file.getvalue())] * 4,))
    used, began = time.thread_time(), time.process_time()
    asking.start()
    asking.join()
    assert time.process_time() - began - (time.thread_time() - used) < 0.5
