import pytest

from sllm.control.state.migration_cost import MigrationCosts


def test_nothing_is_known_at_first() -> None:
    assert MigrationCosts().cost is None


def test_a_line_is_found_again() -> None:
    costs = MigrationCosts()
    for tokens in (10, 100, 1000, 50, 400):
        costs.observe_move(tokens, 0.002 * tokens + 0.3)
    assert costs.cost is not None
    assert costs.cost.per_token == pytest.approx(0.002)
    assert costs.cost.base == pytest.approx(0.3)


def test_of_one_length_it_is_the_mean_per_token() -> None:
    costs = MigrationCosts()
    costs.observe_move(100, 1.0)
    costs.observe_move(100, 3.0)
    assert costs.cost is not None
    assert costs.cost.per_token == pytest.approx(0.02, rel=0.1)
    assert costs.cost.base == pytest.approx(0.0, abs=1e-9)


def test_prompts_stand_in_until_something_has_moved() -> None:
    costs = MigrationCosts()
    costs.observe_prefill(100, 5.0)
    assert costs.cost is not None
    assert costs.cost.per_token == pytest.approx(0.05)
    costs.observe_move(100, 1.0)
    costs.observe_prefill(100, 5.0)
    assert costs.cost.per_token == pytest.approx(0.01)


def test_the_latest_counts_most() -> None:
    costs = MigrationCosts()
    for _ in range(20):
        costs.observe_move(100, 1.0)
    for _ in range(20):
        costs.observe_move(100, 3.0)
    assert costs.cost is not None
    assert costs.cost.per_token > 0.02


def test_it_is_never_negative() -> None:
    costs = MigrationCosts()
    costs.observe_move(10, 5.0)
    costs.observe_move(1000, 1.0)
    assert costs.cost is not None
    assert costs.cost.per_token >= 0
    assert costs.cost.base >= 0
