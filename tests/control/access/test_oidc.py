"""Tokens of an issuer, good ones and all others."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sllm import errors
from sllm.control.access import oidc
from sllm.control.access.oidc import OidcIssuer
from sllm.control.config import OidcConfig
from sllm.control.types.access import CallerRole, Principal
from tests.control.access.conftest import guarded_in
from tests.control.access.issuer import Issuer, issuing
from tests.support import assert_eventually

SECONDS = 20.0


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as one:
        yield one


def believing(issuer: Issuer) -> OidcIssuer:
    return OidcIssuer(OidcConfig(issuer.url, "sllm"))


async def test_a_good_token_says_who_it_is(issuer: Issuer) -> None:
    believed = believing(issuer)
    user = await believed.principal(issuer.token())
    assert user == Principal("acme", CallerRole.USER, "oidc:ada")
    admin = await believed.principal(issuer.token(role="admin", aud=["other", "sllm"]))
    assert admin == Principal("acme", CallerRole.ADMIN, "oidc:ada")
    assert issuer.fetched == 1


BAD: dict[str, Callable[[Issuer], str]] = {
    "nothing": lambda one: "",
    "no token": lambda one: "sllm_abc",
    "three words": lambda one: "a.b.c",
    "expired": lambda one: one.token(exp=int(time.time()) - 60),
    "not yet": lambda one: one.token(nbf=int(time.time()) + 600),
    "for ever": lambda one: one.token(exp=None),
    "for others": lambda one: one.token(aud="other"),
    "for nobody": lambda one: one.token(aud=None),
    "of another issuer": lambda one: one.token(iss="https://other"),
    "of nobody": lambda one: one.token(sub=None),
    "of no tenant": lambda one: one.token(tenant=None),
    "of a tenant that is none": lambda one: one.token(tenant="a/b"),
    "of no role": lambda one: one.token(role="king"),
    "of roles": lambda one: one.token(role=["admin"]),
    "unsigned": lambda one: jwt.encode(
        jwt.decode(one.token(), options={"verify_signature": False}),
        "",
        algorithm="none",
        headers={"kid": "first"},
    ),
    "of a header without end": lambda one: ".".join((_raw(b"[" * 12_000), "e30", "")),
    "of a header that is a list": lambda one: ".".join((_raw(b"[]"), "e30", "")),
    "of a key that is no word": lambda one: ".".join(
        (_part({"alg": "RS256", "kid": [1]}), "e30", "")
    ),
    "of letters that are none": lambda one: "é.\ud800.x",
    "signed with what is public": lambda one: _signed_with_public_key(one),
    "changed": lambda one: one.token()[:-8] + "AAAAAAAA",
}


def _signed_with_public_key(issuer: Issuer) -> str:
    """HS256, the secret being the issuer's public key; libraries refuse to make one."""
    public = issuer.keys["first"].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = _part({"alg": "HS256", "kid": "first", "typ": "JWT"})
    body = f"{header}.{issuer.token().split('.')[1]}"
    made = hmac.new(secret, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


def _part(value: object) -> str:
    return _raw(json.dumps(value).encode())


def _raw(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@pytest.mark.parametrize("what", BAD)
async def test_no_other_token_is_believed(issuer: Issuer, what: str) -> None:
    assert await believing(issuer).principal(BAD[what](issuer)) is None


async def test_keys_are_fetched_again_but_not_for_whoever_names_one(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed = believing(issuer)
    assert await believed.principal(issuer.token())
    issuer.add_key("second")
    for _ in range(20):
        assert await believed.principal(issuer.token("second")) is None
    assert issuer.fetched == 1
    monkeypatch.setattr(oidc, "_AGAIN_SECONDS", 0.0)
    assert await believed.principal(issuer.token("second"))
    assert issuer.fetched == 2


async def test_what_was_fetched_lasts_while_the_issuer_is_away(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_KEPT_SECONDS", 0.0)
    believed = believing(issuer)
    token = issuer.token()
    assert await believed.principal(token)
    issuer.answers = False
    assert await believed.principal(token)


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", b"what?\r\n"])
async def test_an_issuer_that_talks_nonsense_is_away(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(oidc, "_AGAIN_SECONDS", 0.0)
    believed = believing(issuer)
    token = issuer.token()
    issuer.says = said
    assert await believed.principal(token) is None
    issuer.says = None
    assert await believed.principal(token)


async def test_who_is_known_does_not_wait_for_a_slow_issuer(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names a key that nobody has makes nobody else wait for it."""
    monkeypatch.setattr(oidc, "_AGAIN_SECONDS", 0.0)
    believed = believing(issuer)
    token = issuer.token()
    assert await believed.principal(token)
    issuer.add_key("second")
    issuer.door.clear()
    stranger = asyncio.create_task(believed.principal(issuer.token("second")))
    await assert_eventually(lambda: issuer.asking)
    assert await believed.principal(token)
    assert not stranger.done()
    monkeypatch.setattr(oidc, "_KEPT_SECONDS", 0.0)
    assert await believed.principal(token)  # nor does it where they are to be fetched again
    issuer.door.set()
    assert await stranger


async def test_an_issuer_that_answers_without_end_is_away(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_FETCH_SECONDS", 0.2)
    believed = believing(issuer)
    issuer.drips = True
    async with asyncio.timeout(SECONDS):
        assert await believed.principal(issuer.token()) is None


@pytest.mark.parametrize("url", ["", "issuer", "http://example.com", "ftp://127.0.0.1", "https://"])
def test_an_issuer_is_reached_by_https(url: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="no https:// URL"):
        OidcConfig(url, "sllm").check()


async def test_tokens_and_keys_come_in_by_one_door(issuer: Issuer, tmp_path: Path) -> None:
    async with guarded_in(tmp_path, oidc=OidcConfig(issuer.url, "sllm")) as guarded:
        async with guarded.client(issuer.token(role="operator")) as operator:
            assert await operator.deployments() == []
            with pytest.raises(errors.PermissionDenied):
                await operator.keys()
        async with guarded.client(guarded.first_key) as admin:
            assert await admin.keys()
        async with guarded.client(issuer.token(aud="other")) as nobody:
            with pytest.raises(errors.Unauthenticated):
                await nobody.nodes()
