"""Answers as they are kept for repeated calls: what comes back is what was told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.bounds import LONGEST
from sllm.control.cluster.specs import (
    Deployment,
    DeploymentSpec,
    DeploymentState,
    EngineConfig,
    ModelInfo,
    ScalingPolicy,
)
from sllm.control.cluster.tiers import Tier
from sllm.control.cluster.validation import DTYPES
from sllm.control.types.calls import DONE_ALONE, AnswerFormat, Done
from sllm.control.types.operations import Prefetched
from sllm.control.types.pins import Pin, Place
from sllm.control.types.status import DeploymentStatus, Loading, LoadPhase
from sllm.control.wire.deployments import DEPLOYED
from sllm.control.wire.operations import PINNED, PREFETCHED, UNPINNED

COUNTS = st.integers(0, 2**31 - 1)
MOMENTS = st.integers(0, 2**40).map(lambda count: count / 512)
"""Seconds that are the same as nanoseconds in whole numbers, and back."""
DURATIONS = st.integers(0, int(LONGEST) * 512).map(lambda count: count / 512)
"""The same, as long as any may be."""
NAMES = st.text("abcdefg-0123", max_size=8)

ENGINES = st.builds(
    EngineConfig,
    engine=st.just("transformers"),
    dtype=st.sampled_from(DTYPES),
    kv_cache_tokens=st.none() | COUNTS,
    max_concurrency=COUNTS,
    pack=st.booleans(),
)
SCALINGS = st.builds(ScalingPolicy, COUNTS, COUNTS, DURATIONS, st.none() | COUNTS)
SPECS = st.builds(DeploymentSpec, NAMES, NAMES.map("file:///{}".format), ENGINES, SCALINGS)
MODELS = st.builds(
    ModelInfo, NAMES, COUNTS, COUNTS, COUNTS, NAMES, NAMES, st.none() | COUNTS, COUNTS
)
LOADINGS = st.builds(
    Loading,
    st.sampled_from(LoadPhase),
    st.none() | st.sampled_from(Tier),
    COUNTS,
    COUNTS,
    st.none() | DURATIONS,
)
STATUSES = st.builds(
    DeploymentStatus,
    st.builds(Deployment, SPECS, MODELS, MOMENTS),
    st.sampled_from(DeploymentState),
    NAMES,
    COUNTS,
    COUNTS,
    st.none() | LOADINGS,
)
PINS = st.builds(Pin, st.builds(Place, NAMES, st.sampled_from(Tier), NAMES), st.none() | MOMENTS)
PREFETCHES = st.builds(Prefetched, NAMES, st.sampled_from(Tier), NAMES, MOMENTS)


@pytest.mark.parametrize(
    ("kept", "answers"),
    [
        (DEPLOYED, STATUSES),
        (PINNED, PINS),
        (UNPINNED, st.lists(PINS, max_size=3)),
        (PREFETCHED, PREFETCHES),
        (DONE_ALONE, st.sampled_from(Done)),
    ],
)
@given(st.data())
def test_an_answer_comes_back_as_it_was_told(
    kept: AnswerFormat[Any], answers: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    answer = data.draw(answers)
    assert kept.decode(kept.encode(answer)) == answer
