"""Tenants beside one another."""

import pytest

from sllm import errors
from sllm.control.tenants.limits import Limits
from sllm.control.tenants.shares import Shares
from sllm.control.tenants.tenants import Tenants


def check(tenants: Tenants, deployment: str, now: float = 0.0) -> None:
    tenants.check(deployment, more=1, to_wait=0, queued=0, now=now)


def test_one_tenant_that_has_all_that_it_may_have_hinders_no_other() -> None:
    tenants = Tenants()
    tenants.limits["acme"] = Limits(requests=1)
    tenants.began("acme:llama")
    for _ in range(5):
        tenants.began("llama")
    check(tenants, "llama")
    check(tenants, "other:llama")
    with pytest.raises(errors.TenantLimit):
        check(tenants, "acme:opt")
    tenants.ended("acme:llama")
    check(tenants, "acme:opt")


def test_prompts_and_what_is_generated_count_against_the_minute() -> None:
    tenants = Tenants()
    tenants.limits["acme"] = Limits(tokens_per_minute=60)
    tenants.prompted("acme:llama", 40, now=0.0)
    check(tenants, "acme:llama")
    tenants.generated("acme:llama", 20, now=0.0)
    with pytest.raises(errors.TenantLimit) as caught:
        check(tenants, "acme:llama")
    assert caught.value.retry_after == 1.0
    check(tenants, "acme:llama", now=1.0)
    usage = tenants.usage.of["acme"]
    assert (usage.prompt_tokens, usage.generated_tokens) == (40, 20)


def test_who_has_least_of_its_share_goes_first() -> None:
    instances = ["a:m"] * 4 + ["b:m"] * 3 + ["c:m"]
    shares = Shares(instances, {"a": Limits(weight=4.0), "c": Limits(weight=0.5)})
    assert sorted(["a:m", "b:m", "c:m", "m"], key=shares.used) == ["m", "a:m", "c:m", "b:m"]
    shares.took("m")
    shares.took("m")
    assert sorted(["a:m", "m"], key=shares.used) == ["a:m", "m"]


def test_an_instance_ends_for_those_who_have_less_of_their_share() -> None:
    shares = Shares(["a:m", "a:n", "b:m"], {})
    assert shares.owes("a:m", "b:n")
    assert not shares.owes("b:m", "a:o")
    assert shares.owes("a:m", "a:o")
    assert not shares.of_one
    assert Shares(["a:m", "a:n"], {}).of_one


def test_a_tenant_may_have_so_many_instances() -> None:
    shares = Shares(["a:m"], {"a": Limits(replicas=2)})
    assert not shares.is_full("a:n")
    shares.took("a:n")
    assert shares.is_full("a:m")
    assert not shares.is_full("m")
