from hypothesis import given
from hypothesis import strategies as st

from sllm.node.kept.choice import OVERHEAD_SECONDS, KeptPage, Rates, worth_reading

PAGE = 16
MIB = 1 << 20

segments = st.lists(
    st.tuples(st.integers(1, 20), st.one_of(st.just(0), st.integers(1, 64 * MIB))), max_size=6
)
rates = st.builds(
    Rates,
    st.floats(1e6, 1e11),
    st.floats(1e6, 1e10),
    st.floats(1e-7, 1.0),
)


def pages_of(parts: list[tuple[int, int]], size: int) -> list[KeptPage]:
    return [
        KeptPage(size, str(number), unread)
        for number, (count, unread) in enumerate(parts)
        for _ in range(count)
    ]


def seconds(pages: list[KeptPage], count: int, known: Rates) -> float:
    """What reading so many of them and computing the others takes."""
    assert known.seconds_per_token is not None
    unread = {page.segment: page.unread_bytes for page in pages[:count]}
    read = sum(page.size_bytes for page in pages[:count]) / known.pool_bytes_per_second
    read += sum(unread.values()) / known.ssd_bytes_per_second
    computed = (len(pages) - count) * PAGE * known.seconds_per_token
    return computed + (read + OVERHEAD_SECONDS if count else 0.0)


@given(segments, st.integers(4096, MIB), rates)
def test_no_other_number_of_pages_is_sooner(
    parts: list[tuple[int, int]], size: int, known: Rates
) -> None:
    pages = pages_of(parts, size)
    chosen = seconds(pages, worth_reading(pages, PAGE, known), known)
    least = min(seconds(pages, count, known) for count in range(len(pages) + 1))
    assert chosen <= least * (1 + 1e-9) + 1e-12


def test_all_are_read_where_nobody_knows_what_computing_takes() -> None:
    pages = pages_of([(3, 0), (2, 64 * MIB)], 4096)
    assert worth_reading(pages, PAGE, Rates(1e9, 1e6, None)) == 5


def test_what_is_computed_sooner_than_it_is_read_is_computed() -> None:
    pages = pages_of([(4, 0), (4, 64 * MIB)], 64 * 1024)
    quick = Rates(1e10, 1e8, 1e-4)
    assert worth_reading(pages, PAGE, quick) == 4, "the second half would come from the disk"
    assert worth_reading(pages, PAGE, Rates(1e10, 1e8, 1e-6)) == 0
    assert worth_reading(pages, PAGE, Rates(1e10, 1e8, 1e-1)) == 8
