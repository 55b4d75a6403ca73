"""Runs a model over whole texts: batches of many requests, in a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, Final

import torch

from sllm.embedding.purpose import PASS_TOKENS, Pooling, Purpose, Task
from sllm.errors import ShuttingDown, UnsupportedModel
from sllm.node.worker.engine.interface import Counters
from sllm.node.worker.engine.niceness import stand_back
from sllm.node.worker.engine.pooling import mask_of, pool

_LEAST_FILL: Final = 0.75
"""Of a batch, what is no padding, but for the text that it is for."""


@dataclass(frozen=True, slots=True)
class Encodable:
    """A text as the model sees it."""

    token_ids: tuple[int, ...]
    """At least one."""
    type_ids: tuple[int, ...] = ()
    """Which of two texts each token is of, for models that are told. Empty: all of the first."""


@dataclass(slots=True, eq=False)
class _Job:
    """The texts of one request."""

    texts: Sequence[Encodable]
    future: "Future[torch.Tensor]"
    waiting: deque[int] = field(default_factory=deque)
    """Numbers of those that have not been computed, the longest first."""
    found: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting.extend(sorted(range(len(self.texts)), key=lambda number: -self.length(number)))

    def length(self, number: int) -> int:
        """Tokens of a text."""
        return len(self.texts[number].token_ids)


@dataclass(frozen=True, slots=True)
class _Place:
    """A text in a batch."""

    job: _Job
    number: int

    @property
    def text(self) -> Encodable:
        return self.job.texts[self.number]


def pooling_of(purpose: Purpose) -> Pooling | None:
    """What makes a vector of those of tokens. None: the model gives scores by itself."""
    return Pooling(purpose.pooling) if purpose.task is Task.EMBED else None


class Batches:
    """Runs a model over texts side by side, padded on the right."""

    def __init__(self, module: Any, pooling: Pooling | None) -> None:
        """As for `Encoder`."""
        self._module = module
        self._pooling = pooling
        self._device = next(module.parameters()).device
        config = module.config.get_text_config()
        self._pad = config.pad_token_id
        takes_types = "token_type_ids" in signature(module.forward).parameters
        self._types = getattr(config, "type_vocab_size", 0) if takes_types else 0

    @property
    def most_texts(self) -> int:
        """Of one batch: without a token to pad with, a model that scores finds no text's end."""
        return 1 if self._pooling is None and self._pad is None else PASS_TOKENS

    @torch.inference_mode()
    def compute(self, texts: Sequence[Encodable]) -> torch.Tensor:
        """One forward pass: float32 [texts, numbers], on the processor."""
        lengths = torch.tensor([len(text.token_ids) for text in texts], device=self._device)
        longest = int(lengths.max())
        given = {
            "input_ids": self._padded([text.token_ids for text in texts], longest, self._pad or 0),
            "attention_mask": mask_of(lengths, longest).long(),
        }
        # Many tokenizers tell texts apart for models that do not.
        types = [text.type_ids for text in texts]
        if 0 < max(max(row, default=0) for row in types) < self._types:
            given["token_type_ids"] = self._padded(types, longest, 0)
        output = self._module(**given)
        if self._pooling is None:
            scores: torch.Tensor = output.logits.float().cpu()
            return scores
        return pool(output.last_hidden_state, lengths, self._pooling).cpu()

    def _padded(self, rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
        padded = [[*row, *[filler] * (width - len(row))] for row in rows]
        return torch.tensor(padded, device=self._device)


class Encoder:
    """Takes requests from any thread, and has each of them in turn lead a batch.

    What else has room in it comes from the same request, and then from others: texts that are not
    much shorter, so that little is padding. A failure ends the encoder and all its requests.
    """

    def __init__(
        self, module: Any, pooling: Pooling | None, pass_tokens: int = PASS_TOKENS
    ) -> None:
        """Runs nothing yet.

        Args:
            module: of transformers; its configuration says what it is padded with.
            pooling: what makes a vector of those of tokens. None: the model gives scores by itself.
            pass_tokens: of one forward pass, padding included, unless a single text has more.
        """
        self._pass_tokens = pass_tokens
        self._batches = Batches(module, pooling)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._counters = Counters()
        self._thread: threading.Thread | None = None

    @property
    def counters(self) -> Counters:
        """As of the latest batch."""
        with self._changed:
            return replace(self._counters, running_requests=len(self._jobs))

    def start(self, on_failure: Callable[[Exception], None]) -> None:
        """Begins to run. `on_failure` is called in its thread, at most once."""
        self._thread = threading.Thread(target=self._run, args=(on_failure,), name="encoder")
        self._thread.start()

    def submit(self, texts: Sequence[Encodable]) -> "Future[torch.Tensor]":
        """What the model makes of texts, float32 [texts, numbers]; to cancel it leaves them out.

        It raises UnsupportedModel if the model gives no numbers, ShuttingDown once it has ended.
        """
        job = _Job(texts, Future())
        with self._changed:
            if self._stopping:
                job.future.set_exception(ShuttingDown("the instance has ended"))
            else:
                self._jobs.append(job)
                self._changed.notify()
        return job.future

    def stop(self) -> None:
        """Ends it with all its requests, and returns when it is done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
        while self._jobs:
            _settle(self._jobs.popleft(), ShuttingDown("the instance has ended"))

    def _run(self, on_failure: Callable[[Exception], None]) -> None:
        stand_back()
        try:
            while batch := self._next_batch():
                texts = [place.text for place in batch]
                self._deal(batch, self._batches.compute(texts))
        except Exception as error:
            with self._changed:
                self._stopping = True
            on_failure(error)

    def _next_batch(self) -> "list[_Place]":
        """The texts of the next pass; none: it is to stop."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._stopping:
                    return []
                if any(job.waiting for job in self._jobs):
                    break
                self._changed.wait()
            batch = _choose(self._jobs, self._batches.most_texts, self._pass_tokens)
            self._jobs.rotate(-1)  # the next one leads the next batch
            self._counters = replace(self._counters, steps=self._counters.steps + 1)
            return batch

    def _drop_cancelled(self) -> None:
        there = deque(job for job in self._jobs if not job.future.cancelled())
        gone = len(self._jobs) - len(there)
        if gone:
            self._jobs = there
            cancelled = self._counters.cancelled_requests + gone
            self._counters = replace(self._counters, cancelled_requests=cancelled)

    def _deal(self, batch: "Sequence[_Place]", numbers: torch.Tensor) -> None:
        """Gives each request what was computed for it, and ends those that have all of theirs."""
        for place, row in zip(batch, numbers, strict=True):
            place.job.found[place.number] = row
        for job in {place.job for place in batch}:
            if len(job.found) == len(job.texts):
                with self._changed:
                    self._jobs.remove(job)
                _finish(job)


def _choose(jobs: Sequence[_Job], most_texts: int, pass_tokens: int) -> list[_Place]:
    """The texts of a batch, taken from their requests: the longest of the first, and what fits."""
    batch: list[_Place] = []
    longest = used = 0
    for job in jobs:
        while job.waiting and len(batch) < most_texts:
            length = job.length(job.waiting[0])
            width = longest or length
            count = len(batch) + 1
            fits = not batch or (
                length <= width
                and width * count <= pass_tokens
                and used + length >= _LEAST_FILL * width * count
            )
            if not fits:
                break
            longest, used = width, used + length
            batch.append(_Place(job, job.waiting.popleft()))
    return batch


def _finish(job: _Job) -> None:
    found = torch.stack([job.found[number] for number in range(len(job.texts))])
    if bool(found.isfinite().all()):
        _settle(job, found)
        return
    problem = UnsupportedModel(
        "the model gives no numbers for a text (NaN or infinite): its weights are damaged, or too "
        "large for the dtype in which they are served"
    )
    _settle(job, problem)


def _settle(job: _Job, outcome: torch.Tensor | Exception) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        job.future.set_exception(outcome)
    else:
        job.future.set_result(outcome)
