"""Prints what images take in a process of its own, and what was foretold of it.

    python -m tests.node.worker.engine.image_memory MODEL

Two lines of two numbers: of what is seen, and of what is read.
"""

import itertools
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from PIL import Image as pillow
from safetensors.torch import load_file

from sllm.chat.images import MAX_PIXELS, Image
from sllm.node.worker.backends.vllm_backend import VllmBackend
from sllm.node.worker.engine.interface import Capacity, EngineRequest
from sllm.node.worker.model.module import ModelFiles, load_files
from sllm.node.worker.model.seeing import ImageReader, SeenPrompt
from sllm.sampling import Sampling
from tests.node.worker.engines import Harness, running
from tests.vision import picture

Result = TypeVar("Result")
_REQUESTS = 4
_IMAGES = 2
"""Of each request."""
_ROUNDS = 2
"""Of requests with other images, so that vLLM has to let go of earlier ones."""


def anonymous() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def taken(do: Callable[[], Result]) -> tuple[int, Result]:
    """Bytes that are taken at most while something is done, and what comes of it."""
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    result = do()
    done.set()
    watching.join()
    return most - before, result


def read(files: ModelFiles, reader: ImageReader, *images: bytes) -> SeenPrompt:
    """A prompt with images."""
    prompt = "user: " + "<image>" * len(images)
    tokens = files.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return reader.read(tokens, [Image(one) for one in images], placed=False)


def see(harness: Harness, files: ModelFiles, reader: ImageReader) -> int:
    """Has requests with images done, all of a round at once; gives the bytes of its inputs."""
    pictures = map(picture, itertools.count())
    for number in range(_ROUNDS):
        asked, kept = [], 0
        for request in range(_REQUESTS):
            one = read(files, reader, *itertools.islice(pictures, _IMAGES))
            kept += one.nbytes
            name = f"{number}-{request}"
            asked.append(EngineRequest(name, one.token_ids, Sampling(seed=1), 4, images=one.images))
        harness.generate(asked)
    return kept


def main(directory: Path) -> None:
    """Measures a model."""
    backend = VllmBackend()
    files = load_files(directory, backend.check)
    reader = backend.images(files, "float32")
    assert reader is not None
    weights = load_file(directory / "model.safetensors")
    engine = backend.load(files, weights, on_device=False).engine(Capacity(4096, _REQUESTS))
    side, large = int(MAX_PIXELS**0.5), BytesIO()
    pillow.new("RGB", (side, side), (1, 2, 3)).save(large, "WEBP")
    with running(engine) as harness:
        harness.generate([EngineRequest("text", (5, 6, 7), Sampling(seed=1), 4)])
        foretold = reader.memory
        found, kept = taken(lambda: see(harness, files, reader))
        _tell(found, kept + foretold.request + foretold.step)
        files_read = [large.getvalue()] * _IMAGES
        found, _ = taken(lambda: read(files, reader, *files_read))
        _tell(found, foretold.reading)


def _tell(found: int, foretold: int) -> None:
    sys.stdout.write(f"{found} {foretold}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
