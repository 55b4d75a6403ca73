"""Joined without a copy, or as torch does it: the values are always those of torch."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sllm.node.worker.model.joining import JoinedInPlace

Join = Callable[..., torch.Tensor]
MEMORY = torch.arange(4096, dtype=torch.float32)


def place(offset: int, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    return MEMORY.as_strided(shape, strides, offset)


shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def views(draw: st.DrawFn) -> list[torch.Tensor]:
    """Tensors of one shape within one memory: regularly placed, nearly so, or anyhow."""
    shape = draw(shapes)
    strides = draw(st.lists(st.integers(0, 16), min_size=len(shape), max_size=len(shape)))
    step = draw(st.integers(-2, 64))
    count = draw(st.integers(1, 5))
    places = [200 + number * step for number in range(count)]
    moved = draw(st.integers(0, count))
    if moved < count:
        places[moved] += draw(st.integers(-3, 3))
    return [place(offset, shape, strides) for offset in places]


@given(views(), st.sampled_from([torch.stack, torch.cat]), st.integers(-4, 4))
def test_the_values_are_those_of_torch(tensors: list[torch.Tensor], join: Join, dim: int) -> None:
    try:
        expected = join(tensors, dim=dim)
    except (RuntimeError, IndexError) as error:
        with JoinedInPlace(), pytest.raises(type(error)):
            join(tensors, dim=dim)
        return
    with JoinedInPlace():
        found = join(tensors, dim)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


def shares(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == MEMORY.untyped_storage().data_ptr()


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
def test_neighbours_are_joined_without_a_copy(
    experts: int, rows: int, columns: int, gap: int
) -> None:
    """As fused experts are: two halves of each in turn, and whatever is between two experts."""
    size = rows * columns
    step = 2 * size + gap
    gates, ups = (
        [place(half * size + n * step, (rows, columns), (columns, 1)) for n in range(experts)]
        for half in (0, 1)
    )
    halves = [torch.stack(gates), torch.stack(ups)]
    with JoinedInPlace():
        fused = torch.cat([torch.stack(gates, dim=0), torch.stack(ups, dim=0)], dim=1)
    assert shares(fused) or experts == 1 or rows == 1 or columns == 1
    assert torch.equal(fused, torch.cat(halves, dim=1))


def a_copy(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensors[0], tensors[1].clone()]


def another_dtype(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensors[0], tensors[1].view(torch.int32)]


def parameters(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def on_no_device(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.to("meta") for tensor in tensors]


@pytest.mark.parametrize("spoil", [a_copy, another_dtype, parameters, on_no_device])
@pytest.mark.parametrize("join", [torch.stack, torch.cat])
def test_what_is_not_side_by_side_is_copied(
    spoil: Callable[[list[torch.Tensor]], list[torch.Tensor]], join: Join
) -> None:
    tensors = spoil([place(0, (2, 3), (3, 1)), place(6, (2, 3), (3, 1))])
    with JoinedInPlace():
        joined = join(tensors)
    assert not shares(joined)
    assert joined.is_meta or torch.equal(joined, join(tensors))


def test_where_the_result_is_to_go_is_respected() -> None:
    tensors = [place(0, (2, 3), (3, 1)), place(6, (2, 3), (3, 1))]
    given = torch.empty(4, 3)
    with JoinedInPlace():
        assert torch.cat(tensors, out=given) is given
