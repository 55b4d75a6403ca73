"""Tokens of an OpenID Connect issuer: its keys are fetched beside the loop, and kept."""

import asyncio
import json
import math
import time
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import structlog

from sllm import errors
from sllm.control.config import OidcConfig
from sllm.control.tenants.names import check_tenant
from sllm.control.types.access import CallerRole, Principal

log = structlog.get_logger()

_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""With a public key all of them: a token that an issuer's public key would have signed is none."""
_KEPT_SECONDS: Final = 300.0
_AGAIN_SECONDS: Final = 10.0
"""Between two fetches, whatever keys callers name: nobody has the issuer flooded."""
_STALE_SECONDS: Final = 2 * _KEPT_SECONDS
"""After which nobody is let in by them before they were asked for again."""
_FETCH_SECONDS: Final = 5.0
"""For each of the issuer's two documents."""
_PART_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 20
_LEEWAY_SECONDS: Final = 30.0
"""That clocks may differ."""


class OidcIssuer:
    """One issuer. Belongs to the event loop."""

    def __init__(self, config: OidcConfig) -> None:
        config.check()
        self._config = config
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    async def principal(self, token: str) -> Principal | None:
        """Whose token it is. None: it is none of this issuer, or not any more."""
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=list(_ALGORITHMS),
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            return self._told(claims)
        except (jwt.PyJWTError, errors.InvalidRequest, ValueError, TypeError):
            return None

    def _told(self, claims: dict[str, Any]) -> Principal:
        tenant = check_tenant(str(claims.get(self._config.tenant_claim, "")))
        named = str(claims.get(self._config.role_claim, CallerRole.USER.name)).upper()
        if named not in CallerRole.__members__:
            raise ValueError(named)
        return Principal(tenant, CallerRole[named], f"oidc:{claims['sub']!s:.128}")

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        """A key of the issuer; whoever shows one that is known does not wait for it."""
        age, known = time.monotonic() - self._fetched_at, kid in self._keys
        if age >= _KEPT_SECONDS or (age >= _AGAIN_SECONDS and not known):
            self._begin_fetch()
        if self._fetching and not (known and age < _STALE_SECONDS):
            await asyncio.wait([self._fetching])
        return self._keys.get(kid)

    def _begin_fetch(self) -> None:
        if self._fetching is None:
            self._fetched_at = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch(), name="keys of the issuer")

    async def _fetch(self) -> None:
        """Takes the issuer's keys in; where it does not answer, those that there are stay."""
        try:
            async with asyncio.timeout(3 * _FETCH_SECONDS):
                self._keys = await asyncio.to_thread(_keys_of, self._config.issuer)
        except Exception as error:  # whatever another's server says
            log.warning("access.issuer_unavailable", issuer=self._config.issuer, problem=str(error))
        finally:
            self._fetching = None


def _keys_of(issuer: str) -> dict[str, jwt.PyJWK]:
    told = _read(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if told["issuer"] != issuer:
        raise ValueError(f"it calls itself {told['issuer']!r}")
    found = jwt.PyJWKSet.from_dict(_read(told["jwks_uri"]))
    return {key.key_id or "": key for key in found.keys}


def _read(url: str) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("https", "http"):
        raise ValueError(f"{url!r} is no URL of the web")
    deadline, read = time.monotonic() + _FETCH_SECONDS, b""
    with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as answer:
        while part := answer.read1(_PART_BYTES):
            read += part
            if len(read) > _MOST_BYTES or time.monotonic() >= deadline:
                raise ValueError(f"{url} has no end: it gave {len(read)} bytes")
    found = json.loads(read)
    if not isinstance(found, dict):
        raise ValueError(f"{url} gives no object")
    return found
