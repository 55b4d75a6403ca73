"""Looks at images in a process of its own, since decoders may hold Python's lock all the while.

    python -m sllm.chat.looking

The process is asked on its standard input: a line of JSON with the types and sizes of some images,
and then their bytes. It answers with a line of JSON: what is wrong with them, or nothing.
"""

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, Final

from sllm.chat.images import Image, decoded
from sllm.errors import InvalidImage, NoCapacity

CPU_SECONDS: Final = 20
"""Of a processor's time that the images of one request may take: ten times what they do."""
_TIMEOUT: Final = 90.0
"""Seconds that they may take altogether, also where processors are short."""


class Looker:
    """Its process is started when it is first asked, and stays. It does one thing at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._closed = False

    def look(self, images: Sequence[Image]) -> None:
        """Returns if images can be decoded. Takes a while.

        Raises:
            InvalidImage: One cannot; or they are out of their bounds, or take too long.
            NoCapacity: There is no process to look at them, or it came to nothing.
        """
        with self._turn:
            said = _answer(self._started(), images)
            status = None if said else self._end()
        if status == -signal.SIGXCPU:
            raise InvalidImage(
                f"the images take more than {CPU_SECONDS} s to decode; make them smaller"
            )
        if status is not None:
            raise NoCapacity(f"the process that looked at images has ended ({status}): try again")
        if problem := json.loads(said)["problem"]:
            raise InvalidImage(problem)

    def close(self) -> None:
        """Ends the process, also while it is asked; looks at nothing any more. From any thread."""
        self._closed = True
        if process := self._process:
            process.kill()
        with self._turn:
            if self._process:
                self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise NoCapacity("no images are looked at any more")
        if self._process is None:
            command = [sys.executable, "-m", __name__]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            except OSError as error:
                raise NoCapacity(f"no process could look at images: {error}") from error
        return self._process

    def _end(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        with suppress(OSError), process:  # closes its pipes, also where it has not read all
            pass
        return process.wait()


def _answer(process: subprocess.Popen[bytes], images: Sequence[Image]) -> bytes:
    """A line, or nothing of a process that has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(_TIMEOUT, process.kill)
    timer.start()
    try:
        _send(process.stdin, images)
        return process.stdout.readline()
    except OSError:  # there is nobody to read it
        return b""
    finally:
        timer.cancel()
        timer.join()  # if it has killed it, the next to ask finds out


def _send(to: IO[bytes], images: Sequence[Image]) -> None:
    head = [{"media_type": one.media_type, "size": len(one.data)} for one in images]
    to.write(json.dumps(head).encode() + b"\n")
    for one in images:
        to.write(one.data)
    to.flush()


def _asked(line: bytes, source: IO[bytes]) -> list[Image]:
    head: list[dict[str, Any]] = json.loads(line)
    return [Image(source.read(one["size"]), one["media_type"]) for one in head]


def _problem(images: Sequence[Image]) -> str:
    try:
        for _ in decoded(images):
            pass
    except InvalidImage as error:
        return error.message
    return ""


def main() -> None:
    """Looks at images until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asks ends in his own way
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := sys.stdin.buffer.readline():
        images = _asked(line, sys.stdin.buffer)
        used = resource.getrusage(resource.RUSAGE_SELF)
        until = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        answer = json.dumps({"problem": _problem(images)})
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
