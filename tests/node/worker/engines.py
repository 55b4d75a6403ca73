"""A real engine for tests, and what comes out of it."""

import queue
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sllm.node.worker.engine.interface import Capacity, Counters, EngineRequest, NewToken, Step
from sllm.node.worker.engine.transformers_engine import TransformersEngine

TIMEOUT = 60.0
CAPACITY = Capacity(kv_tokens=2048, max_requests=64)


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

    def __init__(self, model: Any, capacity: Capacity) -> None:
        self.engine = TransformersEngine(model, capacity)
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


@contextmanager
def running(model: Any, capacity: Capacity = CAPACITY) -> Iterator[Harness]:
    """An engine for as long as the block runs."""
    harness = Harness(model, capacity)
    try:
        yield harness
    finally:
        harness.engine.stop()
