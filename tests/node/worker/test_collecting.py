"""Of what nobody reads as it comes little is told at once, and all of it in the end."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.node.worker.collecting import Collecting
from sllm.node.worker.engine.interface import FinishReason
from sllm.node.worker.generation import Completed, Event, Output, Tokens, Usage

SECONDS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tokens(first: int) -> Tokens:
    return Tokens(first, (first,), f"{first} ", ())


def completed(first: int) -> Completed:
    return Completed(tokens(first), FinishReason.LENGTH, Usage(1, first + 1, 0), None, 0.1)


def text(event: Event) -> str:
    assert isinstance(event, Tokens | Completed)
    return event.text if isinstance(event, Tokens) else event.tokens.text


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0, 2 * SECONDS)), min_size=1, max_size=60
)


@given(steps)
def test_all_is_told_in_order_and_little_is_held(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    collecting = Collecting(SECONDS, clock)
    counts = dict.fromkeys("abc", 0)
    told: dict[str, list[Event]] = {name: [] for name in counts}
    told_at: dict[str, float] = {}
    for name, pause in steps:
        clock.now += pause
        event, counts[name] = tokens(counts[name]), counts[name] + 1
        if outputs := list(collecting.take(Output(name, event))):
            told[name] += [one.event for one in outputs]
            told_at[name] = clock.now
        assert clock.now - told_at[name] < SECONDS
    for name, count in counts.items():
        told[name] += [one.event for one in collecting.take(Output(name, completed(count)))]
        assert "".join(map(text, told[name])) == "".join(f"{n} " for n in range(count + 1))


def test_many_tokens_make_few_messages() -> None:
    clock = Clock()
    collecting, told = Collecting(SECONDS, clock), 0
    for first in range(1000):
        told += len(list(collecting.take(Output("a", tokens(first)))))
        clock.now += SECONDS / 100
    assert told == 10


def test_nothing_is_told_of_what_is_given_up() -> None:
    collecting = Collecting(SECONDS, Clock())
    for first in range(2):
        list(collecting.take(Output("a", tokens(first))))
    collecting.forget("a")
    end = Output("a", completed(0))  # of another request of this name
    assert list(collecting.take(end)) == [end]
