"""The encoder: batches of many requests, none of which waits for another one's end."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sllm import errors
from sllm.embedding.purpose import PASS_TOKENS, Pooling
from sllm.node.worker.engine.encoder import Encodable, Encoder
from sllm.node.worker.engine.pooling import pool
from tests.support import wait_until

TIMEOUT = 30.0


class Sum(torch.nn.Module):
    """Makes of each token its id and the text's number of tokens; a gate lets batches through."""

    def __init__(self, pad: int | None = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.config = Config(pad)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        """The lengths of the texts of each."""
        self.widths: list[int] = []
        self.failing: Exception | None = None

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.batches.append(attention_mask.sum(1).tolist())
        self.widths.append(input_ids.shape[1])
        assert self.gate.wait(TIMEOUT)
        if self.failing:
            raise self.failing
        assert bool(((input_ids == self.config.pad) | attention_mask.bool()).all())
        numbers = input_ids.float()
        if bool((input_ids == 13).any()):
            numbers = numbers / (input_ids != 13)
        counts = attention_mask.sum(1, keepdim=True).expand_as(input_ids).float()
        return Output(torch.stack([numbers, counts], -1), counts[:, :1])


@dataclass
class Config:
    pad: int | None

    @property
    def pad_token_id(self) -> int | None:
        return self.pad

    def get_text_config(self) -> "Config":
        return self


@dataclass
class Output:
    last_hidden_state: torch.Tensor
    logits: torch.Tensor


@dataclass
class Running:
    module: Sum
    encoder: Encoder
    failures: list[Exception] = field(default_factory=list)

    def submit(self, *lengths: int, token: int = 7) -> "Future[torch.Tensor]":
        return self.encoder.submit([Encodable((token,) * length) for length in lengths])


@pytest.fixture
def running() -> Iterator[Running]:
    module = Sum()
    running = Running(module, Encoder(module, Pooling.LAST))
    running.encoder.start(running.failures.append)
    yield running
    module.gate.set()
    running.encoder.stop()


def held(running: Running) -> "Future[torch.Tensor]":
    """A request that is being computed until the gate opens."""
    running.module.gate.clear()
    first = running.submit(1)
    wait_until(lambda: running.module.batches)
    return first


def test_texts_come_back_in_their_order(running: Running) -> None:
    found = running.submit(3, 1, 4, 1, 5).result(TIMEOUT)
    assert found[:, 1].tolist() == [3, 1, 4, 1, 5]
    assert found.dtype is torch.float32


def test_what_waits_together_is_computed_together(running: Running) -> None:
    first = held(running)
    others = [running.submit(10) for _ in range(20)]
    running.module.gate.set()
    for one in (first, *others):
        one.result(TIMEOUT)
    assert running.module.batches == [[1], [10] * 20]


def test_batches_are_bounded_and_have_little_padding(running: Running) -> None:
    lengths = [1 + (7 * number) % 400 for number in range(300)]
    found = running.submit(*lengths).result(TIMEOUT)
    assert found[:, 1].tolist() == lengths
    module = running.module
    assert sorted(length for batch in module.batches for length in batch) == sorted(lengths)
    for batch, width in zip(module.batches, module.widths, strict=True):
        assert len(batch) * width <= PASS_TOKENS
        assert sum(batch) >= 0.75 * len(batch) * width
    assert len(module.batches) < 40


def test_what_is_longer_than_a_batch_goes_alone(running: Running) -> None:
    running.submit(PASS_TOKENS + 1, 1).result(TIMEOUT)
    assert running.module.batches == [[PASS_TOKENS + 1], [1]]


def test_a_long_request_lets_others_pass(running: Running) -> None:
    first = held(running)
    long = running.submit(*[2000] * 50)
    short = running.submit(5)
    running.module.gate.set()
    for one in (first, short, long):
        one.result(TIMEOUT)
    assert [5] in running.module.batches[1:4]


def test_who_leaves_is_left_out(running: Running) -> None:
    first = held(running)
    gone, other = running.submit(*[100] * 200), running.submit(5)
    assert gone.cancel()
    running.module.gate.set()
    first.result(TIMEOUT)
    other.result(TIMEOUT)
    assert running.module.batches == [[1], [5]]
    assert running.encoder.counters.cancelled_requests == 1
    with pytest.raises(CancelledError):
        gone.result(TIMEOUT)


def test_who_leaves_amid_its_batch_hurts_nobody(running: Running) -> None:
    first = held(running)
    assert first.cancel()
    running.module.gate.set()
    assert running.submit(2).result(TIMEOUT)[0, 1] == 2
    assert not running.failures


def test_what_is_no_number_is_said_of_its_request_alone(running: Running) -> None:
    first = held(running)
    broken, other = running.submit(3, token=13), running.submit(3)
    running.module.gate.set()
    first.result(TIMEOUT)
    with pytest.raises(errors.UnsupportedModel, match="gives no numbers"):
        broken.result(TIMEOUT)
    assert other.result(TIMEOUT).isfinite().all()


def test_a_failure_is_told_and_ends_it(running: Running) -> None:
    running.module.failing = RuntimeError("no memory")
    running.submit(3)
    wait_until(lambda: running.failures)
    with pytest.raises(errors.ShuttingDown):
        running.submit(3).result(TIMEOUT)
    assert [str(one) for one in running.failures] == ["no memory"]


def test_its_end_is_told_to_those_that_wait(running: Running) -> None:
    first = held(running)
    waiting = running.submit(3)
    stopping = threading.Thread(target=running.encoder.stop)
    stopping.start()
    running.module.gate.set()
    stopping.join(TIMEOUT)
    assert first.result(TIMEOUT)[0, 1] == 1
    with pytest.raises(errors.ShuttingDown):
        waiting.result(TIMEOUT)


def test_without_a_token_to_pad_with_scores_are_made_one_by_one() -> None:
    module = Sum(pad=None)
    encoder = Encoder(module, None)
    encoder.start(lambda error: None)
    found = encoder.submit([Encodable((7,) * length) for length in (1, 2, 2)]).result(TIMEOUT)
    encoder.stop()
    assert found.tolist() == [[1], [2], [2]]
    assert module.batches == [[2], [2], [1]]


@pytest.mark.parametrize("pooling", Pooling)
def test_padding_does_not_tell(pooling: Pooling) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(length, 8, generator=generator) for length in (1, 3, 7)]
    padded = torch.full((3, 7, 8), torch.nan)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    found = pool(padded, torch.tensor([1, 3, 7]), pooling)
    ways = {
        Pooling.CLS: lambda rows: rows[0],
        Pooling.LAST: lambda rows: rows[-1],
        Pooling.MEAN: lambda rows: rows.mean(0),
        Pooling.MAX: lambda rows: rows.amax(0),
    }
    torch.testing.assert_close(found, torch.stack([ways[pooling](text) for text in texts]))
