"""What tenants have used."""

import pytest

from sllm.control.tenants.usage import Held, UsageBook


def test_what_is_held_counts_for_as_long_as_it_is() -> None:
    book = UsageBook()
    book.look({}, now=5.0)
    book.look({"a": Held(devices=3, bytes_by_tier={"SSD": 10.0})}, now=7.0)
    later = {"a": Held(devices=1, bytes_by_tier={"SSD": 5.0, "DRAM": 1.0}), "b": Held(devices=1)}
    book.look(later, now=8.0)
    assert book.of["a"].device_seconds == pytest.approx(7.0)
    assert book.of["a"].byte_seconds == {"SSD": pytest.approx(25.0), "DRAM": pytest.approx(1.0)}
    assert book.of["b"].device_seconds == pytest.approx(1.0)


def test_tokens_and_requests_are_added_up() -> None:
    book = UsageBook()
    for _ in range(2):
        usage = book.tenant("a")
        usage.requests += 1
        usage.prompt_tokens += 5
    assert (book.of["a"].requests, book.of["a"].prompt_tokens) == (2, 10)
    assert list(book.of) == ["a"]
