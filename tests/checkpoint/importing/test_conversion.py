import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.importing.conversion import convert
from tests.checkpoint.checkpoints import bits

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CONVERSIONS = [(a, b) for a in TORCH for b in TORCH if a != b and b != "F64"]

TELLING = [0.0, -0.0, 1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-9, 65504.0, 65520.0, 1e-8, -1e38, 3.4e38]
TELLING += [1.0 + 2**-11 + 2**-30, 1.0 + 3 * 2**-11 - 2**-30]
"""Ties to even in both directions, the edges of float16, denormals and what becomes infinite; what
is a tie once it has been rounded to float32."""


def converted(values: torch.Tensor, target: str) -> bytes:
    source = next(name for name, dtype in TORCH.items() if dtype == values.dtype)
    return bytes(convert(memoryview(bits(values)), source, target))


@pytest.mark.parametrize(("source", "target"), CONVERSIONS)
def test_conversions_are_those_of_torch(source: str, target: str) -> None:
    values = torch.tensor([*TELLING, float("inf"), float("-inf")], dtype=torch.float64)
    values = torch.cat([values, torch.randn(1000, dtype=torch.float64)]).to(TORCH[source])
    assert converted(values, target) == bits(values.to(TORCH[target]))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bfloat16_rounds_any_float_as_torch_does(floats: list[float]) -> None:
    values = torch.tensor(floats, dtype=torch.float32)
    assert converted(values, "BF16") == bits(values.to(torch.bfloat16))


def test_nan_stays_nan() -> None:
    payloads = torch.tensor([0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF], dtype=torch.uint32)
    found = converted(payloads.view(torch.float32), "BF16")
    assert torch.frombuffer(bytearray(found), dtype=torch.bfloat16).isnan().all()


@pytest.mark.parametrize("exact", ["F16", "BF16"])
def test_widening_and_back_loses_nothing(exact: str) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(TORCH[exact])
    every = every[~every.isnan()]
    wide = torch.frombuffer(bytearray(converted(every, "F32")), dtype=torch.float32)
    assert converted(wide, exact) == bits(every)
