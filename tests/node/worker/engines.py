"""Real engines for tests, and what comes out of them."""

import queue
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sllm.node.worker.engine.interface import (
    Capacity,
    Counters,
    Engine,
    EngineRequest,
    NewToken,
    Step,
)
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.node.worker.model.description import (
    context_tokens,
    kv_bytes_per_token,
    load_architecture,
)
from sllm.node.worker.ready_made.contents import ReadyMade

TIMEOUT = 60.0
CAPACITY = Capacity(kv_tokens=2048, max_requests=64)
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="there is no vLLM")
Weights = dict[str, torch.Tensor]
ENGINES = ("transformers", pytest.param("vllm", marks=needs_vllm))


@dataclass
class Results:
    """What has come of requests."""

    tokens: dict[str, list[NewToken]] = field(default_factory=lambda: defaultdict(list))
    finished: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)

    def take(self, step: Step) -> None:
        """Files a step's tokens."""
        self.counters = step.counters
        for token in step.tokens:
            self.tokens[token.request_id].append(token)
            if token.finish:
                self.finished.add(token.request_id)
        self.broken.update(step.broken)

    def ids(self, request_id: str) -> list[int]:
        """Token ids of a request."""
        return [token.token_id for token in self.tokens[request_id]]


class Harness:
    """An engine that runs, and its steps in a queue."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.steps: queue.Queue[Step] = queue.Queue()
        self.failures: queue.Queue[Exception] = queue.Queue()
        self.engine.start(self.steps.put, self.failures.put)

    def generate(self, requests: Iterable[EngineRequest]) -> Results:
        """Has all requests done, and returns what has come of them."""
        waiting = {request.request_id for request in requests}
        for request in requests:
            self.engine.submit(request)
        results = Results()
        while waiting - results.finished - results.broken:
            results.take(self.steps.get(timeout=TIMEOUT))
        return results


def load(directory: Path, dtype: torch.dtype | None = None) -> Any:
    """A model as transformers has it."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def make_engine(
    kind: str,
    directory: Path,
    capacity: Capacity = CAPACITY,
    dtype: torch.dtype | None = None,
    change: Callable[[Weights], None] = lambda weights: None,
    ready: ReadyMade | None = None,
) -> Engine:
    """One of `ENGINES` over a model's weights, which has not been started.

    Args:
        kind: which.
        directory: the model, in Hugging Face format.
        capacity: what it may take on.
        dtype: in which it is run; None: as it is stored.
        change: done to the weights before, where they are vLLM's.
        ready: what was made of vLLM's weights before, and is used in their place.
    """
    if kind == "transformers":
        return TransformersEngine(load(directory, dtype), capacity)
    from vllm.distributed.parallel_state import destroy_model_parallel

    from sllm.node.worker.engine.vllm.config import VllmModel
    from sllm.node.worker.engine.vllm.engine import VllmEngine

    destroy_model_parallel()  # a process's first model decides whether there is one for experts
    config = load_architecture(directory, lambda architecture: None).config
    plain = not hasattr(config, "quantization_config")
    dtype = dtype or config.dtype
    weights = {
        name: tensor.to(dtype) if plain else tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    change(weights)
    per_token = kv_bytes_per_token(config, dtype)
    given = weights if ready is None else ready
    model = VllmModel(directory, given, dtype, context_tokens(config), per_token)
    return VllmEngine(model, capacity)


@contextmanager
def running(engine: Engine) -> Iterator[Harness]:
    """An engine for as long as the block runs."""
    harness = Harness(engine)
    try:
        yield harness
    finally:
        harness.engine.stop()
