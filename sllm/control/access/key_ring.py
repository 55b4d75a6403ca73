"""API keys: made, known by their digests, and revoked."""

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control.state.durable import Durable
from sllm.control.tenants.names import DEFAULT
from sllm.control.types.access import ApiKey, CallerRole, KeyAsk, Principal
from sllm.control.types.calls import AnswerFormat, Call

log = structlog.get_logger()

PREFIX: Final = "sllm_"
"""What every secret begins with: so scanners of repositories find one that has got into a file."""
_SECRET_BYTES: Final = 32
_LOOK_SECONDS: Final = 5.0
"""Between two looks at the file of the admin's key."""
_LEAST_CHARACTERS: Final = 32
"""Of a secret that somebody else has made."""


def _never_kept(_: object) -> NoReturn:
    raise AssertionError("a call without an id has no answer that is kept")


_UNASKED: Final[Call[ApiKey]] = Call("", "", AnswerFormat(_never_kept, _never_kept))


@dataclass(frozen=True, slots=True)
class Created:
    """A key, and its secret, which nobody is told again."""

    key: ApiKey
    secret: str
    """Empty: the call was repeated."""


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyRing:
    """All keys. Those that another control plane has stored count from the next `load` on."""

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._keys: dict[str, ApiKey] = {}
        self._by_digest: dict[str, ApiKey] = {}
        self._given: dict[str, ApiKey] = {}
        """What is not stored: the admin's key of a file."""

    @property
    def keys(self) -> Mapping[str, ApiKey]:
        """Those that are stored, by id."""
        return self._keys

    async def load(self) -> None:
        """Takes in what is stored."""
        found = await self._durable.run(self._durable.store.keys)
        self._keys = {key.key_id: key for key in found}
        self._by_digest = {key.digest: key for key in found}

    async def principal(self, shown: str) -> Principal | None:
        """Whose secret it is that is shown. None: it is no key's, or not any more."""
        digest = digest_of(shown)
        key = self._by_digest.get(digest) or self._given.get(digest)
        if key is None or not key.is_good(time.time()):
            return None
        return Principal(key.tenant, key.role, key.key_id)

    async def create(self, ask: KeyAsk, call: Call[ApiKey]) -> Created:
        """Makes a key, unless the call is repeated.

        Raises:
            errors.InvalidArgument: What is asked for cannot be.
            errors.StateUnavailable: It cannot be stored; there is no such key then.
        """
        ask.check()
        made = _make(ask)
        first = await self._put(made.key, call)
        return made if first is made.key else Created(first, "")

    async def revoke(self, key_id: str, call: Call[ApiKey]) -> ApiKey:
        """Has a key count no more.

        Raises:
            errors.KeyNotFound: There is none of this id.
            errors.StateUnavailable: It cannot be stored; the key goes on to count.
        """
        key = self._keys.get(key_id)
        if key is None:
            raise errors.KeyNotFound(f"there is no key {key_id!r}; ListKeys tells which there are")
        revoked = key if key.revoked_at is not None else replace(key, revoked_at=time.time())
        return await self._put(revoked, call)

    def admit_admin(self, path: Path) -> None:
        """Lets in, as an admin, whoever shows what a file holds; may block.

        Raises:
            errors.InvalidArgument: It cannot be read, or holds nothing that is hard to guess.
        """
        try:
            secret = path.read_text().strip()
        except (OSError, ValueError) as error:
            raise errors.InvalidArgument(f"no admin's key can be read: {error}") from error
        if len(secret) < _LEAST_CHARACTERS or not (secret.isascii() and secret.isprintable()):
            raise errors.InvalidArgument(
                f"the admin's key in {path} must have {_LEAST_CHARACTERS} random characters or more"
            )
        digest = digest_of(secret)
        if digest not in self._given:
            made = ApiKey("admin-key-file", digest, DEFAULT, CallerRole.ADMIN, time.time())
            self._given = {digest: made}
            log.info("access.admin_key_read", path=str(path))

    async def follow_admin(self, path: Path, clock: Clock) -> None:
        """Lets in whoever shows what the file holds now, and nobody who shows what it held.

        What cannot be read, or is no key, leaves the former one. Goes on until it is cancelled.
        """
        told = ""
        while True:
            await clock.sleep(_LOOK_SECONDS)
            try:
                await asyncio.to_thread(self.admit_admin, path)
                told = ""
            except errors.InvalidArgument as error:
                if error.message != told:
                    log.warning("access.admin_key_not_read", problem=error.message)
                told = error.message

    async def make_first(self, path: Path) -> None:
        """Makes an admin's key if there is none that counts, and writes it to a private file.

        Raises:
            OSError: It cannot be written; then there is none.
        """
        now = time.time()
        if any(key.role is CallerRole.ADMIN and key.is_good(now) for key in self._keys.values()):
            return
        made = _make(KeyAsk(DEFAULT, CallerRole.ADMIN, note="made at the first start"))
        # First: a key that counts and that nobody has would keep everybody out.
        await self._durable.run(_write_private, path, made.secret)
        await self._put(made.key, _UNASKED)
        log.warning("access.admin_key_made", path=str(path), key=made.key.key_id)

    async def _put(self, key: ApiKey, call: Call[ApiKey]) -> ApiKey:
        """Stores a key, which counts from then on; or the first answer to a repeated call."""
        put = await self._durable.run(self._durable.store.put_key, key, call, time.time())
        if put is key:
            self._keys[key.key_id] = key
            self._by_digest[key.digest] = key
        return put


def _make(ask: KeyAsk) -> Created:
    secret, now = PREFIX + secrets.token_urlsafe(_SECRET_BYTES), time.time()
    key = ApiKey(
        key_id=f"key-{secrets.token_hex(6)}",
        digest=digest_of(secret),
        tenant=ask.tenant,
        role=ask.role,
        created_at=now,
        expires_at=None if ask.ttl is None else now + ask.ttl,
        note=ask.note,
    )
    return Created(key, secret)


def _write_private(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(f"{secret}\n")
