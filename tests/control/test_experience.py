"""What requests teach."""

import pytest

from sllm.control.experience import Experience, Served


def _served(prompt: int = 100, prefill: float | None = None, seconds: float = 2.0) -> Served:
    return Served(0.5, seconds, prompt, 20, prefill)


def test_nothing_is_expected_of_what_has_served_nothing() -> None:
    experience = Experience()
    assert experience.expectation("m") is None
    assert experience.migration is None


def test_the_mean_follows_what_requests_take_now() -> None:
    experience = Experience()
    for seconds in (2.0, 2.0, 4.0):
        experience.served("m", _served(seconds=seconds))
    expected = experience.expectation("m")
    assert expected is not None
    assert 2.0 < expected.seconds < 3.0
    assert expected.first_token_seconds == 0.5
    experience.forget("m")
    assert experience.expectation("m") is None


def test_before_the_first_migration_prefills_tell_what_one_takes() -> None:
    experience = Experience()
    for prompt in (100, 200, 400):
        experience.served("m", _served(prompt, prefill=0.1 + 0.01 * prompt))
    cost = experience.migration
    assert cost is not None
    assert (cost.per_token, cost.base) == pytest.approx((0.01, 0.1), rel=1e-3)


def test_migrations_tell_it_themselves() -> None:
    experience = Experience()
    experience.served("m", _served(100, prefill=1.0))
    for tokens in (50, 100, 300):
        experience.migrated(tokens, 0.5 + 0.002 * tokens)
    cost = experience.migration
    assert cost is not None
    assert (cost.per_token, cost.base) == pytest.approx((0.002, 0.5), rel=1e-3)
