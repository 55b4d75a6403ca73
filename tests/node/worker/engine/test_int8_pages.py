"""Pages that are kept with eight bits a number: how far they are from what they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sllm.node.worker.engine.int8_pages import GROUP, Int8Pages, packed, takes, unpacked
from sllm.node.worker.engine.pages import PageLayout, Prefix
from tests.node.worker.engine.test_engines import request
from tests.node.worker.engine.test_paged_cache import PROMPT, engine, needs_pages, tokens_of
from tests.support import wait_until

ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of a number, relative to it."""


@pytest.mark.parametrize("dtype", ROUNDING)
@given(data=st.data(), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_number_is_off_by_half_a_127th_of_the_largest_beside_it(
    dtype: str, data: st.DataObject, scale: float
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    numbers = np.random.default_rng(seed).standard_normal((5, GROUP)).astype(np.float32) * scale
    numbers[0] = 0
    page = torch.tensor(numbers).to(getattr(torch, dtype))
    raw = memoryview(page.view(torch.uint8).numpy().tobytes())
    kept = packed(raw, dtype)
    assert len(kept) == 5 * (GROUP + 4)
    back = torch.frombuffer(unpacked(memoryview(kept), dtype), dtype=page.dtype).view(5, GROUP)
    was = page.float()
    largest = was.abs().amax(1, keepdim=True)
    most = largest * (0.5 / 127 * 1.001 + ROUNDING[dtype])
    assert ((back.float() - was).abs() <= most).all()
    assert not back[0].any()


def test_bytes_of_unknown_numbers_stay_what_they_are() -> None:
    assert not takes(PageLayout("an engine", 16, 4096))
    assert not takes(PageLayout("an engine", 16, 4096 + 2, "bfloat16"))
    assert takes(PageLayout("an engine", 16, 4096, "bfloat16"))


@needs_pages
def test_a_prompt_goes_on_with_pages_that_were_kept_so(models: Path) -> None:
    """Tokens may differ; what they go on from is what was kept."""
    with engine("transformers", models / "tiny-llama") as (harness, exact, left):
        tokens_of(harness, request(PROMPT, max_tokens=4))
        wait_until(lambda: left)
        pages, prefix = Int8Pages(exact), Prefix(PROMPT)
        assert pages.layout.size_bytes < exact.layout.size_bytes / 3
        count = len(PROMPT) // pages.layout.tokens
        kept = [memoryview(bytearray(pages.layout.size_bytes)) for _ in range(count)]
        assert pages.copy(prefix, range(count), kept) == [True] * count
    with engine("transformers", models / "tiny-llama") as (harness, exact, _):
        pages, again = Int8Pages(exact), request(PROMPT, max_tokens=4)
        assert pages.put(prefix, 0, kept, again.request_id) == count
        assert pages.present(prefix) == count
        whole = [memoryview(bytearray(exact.layout.size_bytes)) for _ in range(count)]
        assert exact.copy(prefix, range(count), whole) == [True] * count
        assert whole == [unpacked(page, exact.layout.dtype) for page in kept]
        assert tokens_of(harness, again)[1] == count * pages.layout.tokens
