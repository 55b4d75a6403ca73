"""Names of tenants, and what becomes of them within the control plane."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import errors
from sllm.control.tenants.names import DEFAULT, check_tenant, said, said_within, tenant_of, whole

NAMES = st.text("abc:.-", max_size=6)
TENANTS = st.sampled_from(["a", "b", "a-b", DEFAULT])


@given(tenant=TENANTS, name=NAMES)
def test_a_name_comes_back_as_it_was_said(tenant: str, name: str) -> None:
    assert said(tenant, whole(tenant, name)) == name


@given(one=TENANTS, other=TENANTS, name=NAMES.filter(bool), others=NAMES.filter(bool))
def test_names_of_two_tenants_never_meet(one: str, other: str, name: str, others: str) -> None:
    """Whatever either says, separators and the other's name in it as well."""
    if one != other:
        assert whole(one, name) != whole(other, others)


@given(tenant=TENANTS, name=NAMES.filter(bool))
def test_a_name_tells_whose_it_is(tenant: str, name: str) -> None:
    assert tenant_of(whole(tenant, name)) == tenant


def test_without_tenants_names_are_as_they_were() -> None:
    assert whole(DEFAULT, "llama") == "llama"
    assert (whole("acme", ""), whole(DEFAULT, "")) == ("", "")


@pytest.mark.parametrize("tenant", ["", "A", "a:b", "a.b", "-a", "a-", "a" * 64, "a b", "ä"])
def test_what_cannot_be_a_tenant_is_refused(tenant: str) -> None:
    with pytest.raises(errors.InvalidName, match=r"must be 1-63 of \[a-z0-9-\]"):
        check_tenant(tenant)


def test_a_tenant_may_be_called_so() -> None:
    check_tenant("a-2")
    check_tenant(DEFAULT)


@pytest.mark.parametrize(
    ("tenant", "text", "as_said"),
    [
        ("acme", "'acme:llama' and acme:opt", "'llama' and opt"),
        ("acme", "'acme:acme:llama'", "'acme:llama'"),
        ("a", "llama:8b of a:llama", "llama:8b of llama"),
        ("a", "b-a:opt, bb_a:opt, b:a:opt", "b-a:opt, bb_a:opt, b:a:opt"),
        ("file", "file:///models/a", "file:///models/a"),
        ("default", "the default: 100", "the default: 100"),
        ("limit", "past the limit:", "past the limit:"),
    ],
)
def test_words_of_a_text_that_are_no_names_stay(tenant: str, text: str, as_said: str) -> None:
    assert said_within(tenant, text) == as_said
