"""Of what nobody reads as it comes little is told at once, and all of it in the end."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.node.worker.collecting import Collecting
from sllm.node.worker.engine.interface import FinishReason
from sllm.node.worker.generation import Completed, Event, Output, Tokens, Usage

SECONDS = 10


def tokens(first: int) -> Tokens:
    return Tokens(first, (first,), f"{first} ", ())


def completed(first: int) -> Completed:
    return Completed(tokens(first), FinishReason.LENGTH, Usage(1, first + 1, 0), None, 0.1)


def text(event: Event) -> str:
    assert isinstance(event, Tokens | Completed)
    return event.text if isinstance(event, Tokens) else event.tokens.text


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, SECONDS // 2)), min_size=1, max_size=60
    )
)
def test_all_is_told_in_order_and_little_at_once(steps: list[tuple[str, int]]) -> None:
    now = 0
    collecting = Collecting(SECONDS, lambda: float(now))
    counts = dict.fromkeys("abc", 0)
    told: dict[str, list[Event]] = {name: [] for name in counts}
    told_at = dict.fromkeys(counts, 0)
    for name, pause in steps:
        now += pause
        event, counts[name] = tokens(counts[name]), counts[name] + 1
        for output in collecting.take(Output(name, event)):
            assert now - told_at[name] >= SECONDS
            told_at[name] = now
            told[output.request_id].append(output.event)
    for name, count in counts.items():
        told[name] += [one.event for one in collecting.take(Output(name, completed(count)))]
        assert "".join(map(text, told[name])) == "".join(f"{n} " for n in range(count + 1))


def test_nothing_is_told_of_what_is_given_up() -> None:
    collecting = Collecting(SECONDS, lambda: 0.0)
    assert not list(collecting.take(Output("a", tokens(0))))
    collecting.forget("a")
    end = Output("a", completed(0))  # of another request of this name
    assert list(collecting.take(end)) == [end]
