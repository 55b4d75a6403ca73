"""What a deployment may be, and what may be changed of one."""

import math
from dataclasses import replace

import pytest

from sllm import errors
from sllm.control.cluster.needs import need_of
from sllm.control.cluster.revision import revise
from sllm.control.cluster.specs import AUTO, DeploymentSpec, EngineConfig, Experts, ScalingPolicy
from sllm.control.cluster.validation import normalize_source, validate
from tests.control.shapes import deployment

SPEC = DeploymentSpec("tiny", "file:///m")


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "llama-3.1_8b", "acme:tiny"])
def test_good_names(name: str) -> None:
    validate(replace(SPEC, name=name))


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "A", "a/b", "A:b", "a:b:c", ":b", "a:", "a b", "ä", "a" * 64, "a\n"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(errors.InvalidName):
        validate(replace(SPEC, name=name))


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, engine=EngineConfig(engine="warp")),
        replace(SPEC, engine=EngineConfig(dtype="int3")),
        replace(SPEC, engine=EngineConfig(kv_cache_tokens=0)),
        replace(SPEC, engine=EngineConfig(max_concurrency=0)),
        replace(SPEC, engine=EngineConfig("vllm", tensor_parallel=0)),
        replace(SPEC, engine=EngineConfig("vllm", tensor_parallel=65)),
        replace(SPEC, engine=EngineConfig("transformers", tensor_parallel=2)),
        replace(SPEC, engine=EngineConfig("vllm", tensor_parallel=2, max_adapters=1)),
        replace(SPEC, engine=EngineConfig(expert_memory=0)),
        replace(SPEC, engine=EngineConfig(expert_memory=2**60)),
        replace(SPEC, engine=EngineConfig("vllm", expert_memory=1 << 30)),
        replace(SPEC, engine=EngineConfig(expert_memory=1 << 30, max_adapters=1)),
        replace(SPEC, engine=EngineConfig(AUTO, expert_memory=1 << 30, tensor_parallel=2)),
        replace(SPEC, scaling=ScalingPolicy(min_replicas=-1)),
        replace(SPEC, scaling=ScalingPolicy(max_replicas=0)),
        replace(SPEC, scaling=ScalingPolicy(min_replicas=2, max_replicas=1)),
        replace(SPEC, scaling=ScalingPolicy(keep_alive=-0.1)),
        replace(SPEC, scaling=ScalingPolicy(keep_alive=math.inf)),
        replace(SPEC, scaling=ScalingPolicy(keep_alive=math.nan)),
    ],
)
def test_bad_policies(spec: DeploymentSpec) -> None:
    with pytest.raises(errors.InvalidArgument):
        validate(spec)


def test_a_bare_path_is_a_file() -> None:
    assert normalize_source("/models/tiny") == "file:///models/tiny"
    assert normalize_source("/models/a#b?c%41") == "file:///models/a%23b%3Fc%2541"
    assert normalize_source("hf://org/model") == "hf://org/model"
    for source in ("", "models/tiny", "./tiny"):
        with pytest.raises(errors.InvalidSource):
            normalize_source(source)


def test_a_revision_keeps_what_is_known() -> None:
    present = deployment()
    policy = replace(present.spec, scaling=ScalingPolicy(max_replicas=7))
    revised = revise(present, policy, present.model)
    assert revised == replace(present, spec=policy)


def test_a_revision_is_what_its_source_is_now() -> None:
    present = deployment()
    present = replace(present, model=replace(present.model, identity="a", digest="d"))
    found = replace(present.model, digest="")
    assert revise(present, present.spec, found) == present
    other = replace(found, identity="b")
    assert revise(present, present.spec, other) == replace(present, model=other)
    unknown = replace(found, identity="")
    assert revise(present, present.spec, unknown) == present


def test_a_revision_knows_of_the_copies_of_its_own_engine() -> None:
    present = deployment(identity="a", private_bytes=5, private_bytes_per_request=1)
    other = replace(present.spec, engine=EngineConfig(engine="vllm"))
    found = replace(present.model, private_bytes=70, private_bytes_per_request=2)
    assert revise(present, other, found).model == found
    unknown = found.without_private
    assert revise(present, present.spec, unknown).model == present.model
    assert revise(present, other, unknown).model == unknown


def test_a_revision_knows_of_the_parts_of_its_own_number() -> None:
    """What a part takes of another number is nobody's, whether copies are known or not."""
    present = deployment(identity="a", private_bytes=5, private_bytes_per_request=1)
    two = replace(present.spec, engine=replace(present.spec.engine, tensor_parallel=2))
    per_token = present.model.kv_bytes_per_token + 7
    found = replace(present.model, kv_bytes_per_token=per_token, private_bytes=70)
    assert revise(present, two, found).model == found
    assert revise(present, two, found.without_private).model == found.without_private


def test_another_memory_for_experts_replaces_what_runs() -> None:
    present = deployment()
    other = replace(present.spec.engine, expert_memory=1 << 30)
    assert present.runs_as(present.spec.engine)
    assert not present.runs_as(other)


def test_an_instance_whose_experts_stay_on_ssd_takes_its_weights_in_memory_of_its_own() -> None:
    before = deployment(size_bytes=1000, private_bytes=5)
    engine = replace(before.spec.engine, expert_memory=300)
    model = replace(before.model, experts=Experts(800, 850, 100))
    present = replace(before, spec=replace(before.spec, engine=engine), model=model)
    need = need_of(present)
    assert (need.pool_bytes, need.resident_bytes, need.private_bytes) == (0, 200, 5 + 200 + 300)
    ample = replace(present, spec=replace(before.spec, engine=replace(engine, expert_memory=10**6)))
    assert need_of(ample).private_bytes == 5 + 200 + 850
    assert need_of(replace(present, spec=before.spec)).pool_bytes == 1000


def test_copies_grow_with_the_requests_at_once() -> None:
    model = deployment(private_bytes=5, private_bytes_per_request=2).model
    assert model.private_bytes_for(64) == 133
    assert model.without_private.private_bytes_for(64) is None


def test_a_revision_is_of_the_same_checkpoint() -> None:
    present = deployment()
    with pytest.raises(errors.DeploymentExists):
        revise(present, replace(present.spec, source="file:///other"), present.model)
    spec = replace(present.spec, engine=EngineConfig(dtype="float32"))
    with pytest.raises(errors.DeploymentExists):
        revise(present, spec, present.model)
