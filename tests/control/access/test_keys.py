"""Keys: made, shown, over, revoked, and written down where they must not be read."""

import asyncio
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sllm import errors
from sllm.clock import ManualClock
from sllm.control.access.key_ring import KeyRing, digest_of
from sllm.control.state.durable import Durable
from sllm.control.state.sqlite import SqliteStore
from tests.control.access.conftest import Guarded, guarded_in
from tests.support import assert_eventually


async def test_the_first_admins_key_is_in_a_private_file(guarded: Guarded) -> None:
    path = guarded.directory / "admin-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with guarded.client(guarded.first_key) as admin:
        (key,) = await admin.keys()
    assert (key.role, key.tenant, key.expires_at) == ("ADMIN", "default", None)


async def test_keys_outlive_a_restart_and_no_other_first_one_is_made(tmp_path: Path) -> None:
    async with guarded_in(tmp_path) as one:
        first = one.first_key
        async with one.client(first) as admin:
            made = await admin.create_key(role="user", tenant="acme", ttl=3600.0, note="for tests")
            gone = await admin.create_key()
            await admin.revoke_key(gone.key.key_id)
    async with guarded_in(tmp_path) as again:
        assert again.first_key == first
        async with again.client(first) as admin:
            listed = {key.key_id: key for key in await admin.keys()}
        assert listed[made.key.key_id] == made.key
        assert listed[gone.key.key_id].revoked_at is not None
        async with again.client(made.secret) as user:
            assert await user.deployments() == []
        async with again.client(gone.secret) as nobody:
            with pytest.raises(errors.Unauthenticated):
                await nobody.deployments()


async def test_another_first_key_is_made_once_no_admin_is_left(tmp_path: Path) -> None:
    async with guarded_in(tmp_path) as one:
        first = one.first_key
        async with one.client(first) as admin:
            (key,) = await admin.keys()
            await admin.revoke_key(key.key_id)
    async with guarded_in(tmp_path) as again:
        assert again.first_key != first
        async with again.client(again.first_key) as admin:
            assert len(await admin.keys()) == 2


async def test_an_admins_key_may_come_from_a_file(tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    (tmp_path / "key").write_text(f"{secret}\n")
    async with guarded_in(tmp_path, admin_key_file=tmp_path / "key") as one:
        assert not (one.directory / "admin-key").exists()
        async with one.client(secret) as admin:
            assert await admin.keys() == []


async def test_the_file_of_the_admins_key_counts_as_it_is(tmp_path: Path) -> None:
    path, clock = tmp_path / "key", ManualClock()
    secrets = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"]
    path.write_text(secrets[0])
    durable = Durable(SqliteStore(tmp_path / "state.db"))
    ring = KeyRing(durable)
    ring.admit_admin(path)
    following = asyncio.create_task(ring.follow_admin(path, clock))

    async def counting() -> list[bool]:
        clock.advance(5.0)
        return [await ring.principal(secret) is not None for secret in secrets]

    with capture_logs() as logs:
        path.write_text("short")

        async def is_told() -> bool:
            return await counting() == [True, False] and len(logs) == 1

        await assert_eventually(is_told)
        path.write_text(secrets[1])

        async def is_replaced() -> bool:
            return await counting() == [False, True]

        await assert_eventually(is_replaced)
    assert [line["event"] for line in logs] == [
        "access.admin_key_not_read",
        "access.admin_key_read",
    ]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await durable.close()


@pytest.mark.parametrize("content", [None, "short", "ä" * 40])
async def test_what_is_no_admins_key_is_refused(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "key").write_text(content)
    with pytest.raises(errors.InvalidArgument, match="admin's key"):
        async with guarded_in(tmp_path, admin_key_file=tmp_path / "key"):
            pass


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"role": "king"}, "no role"),
        ({"role": "unspecified"}, "no role"),
        ({"tenant": ""}, "must be 1-63 of"),
        ({"tenant": "a/b"}, "must be 1-63 of"),
        ({"tenant": "A"}, "must be 1-63 of"),
        ({"ttl": 0.0}, "may last above 0"),
        ({"ttl": -1.0}, "may last above 0"),
        ({"ttl": 1e9}, "may last above 0"),
        ({"note": "x" * 201}, "200 characters"),
    ],
    ids=str,
)
async def test_what_no_key_can_be_is_refused(
    guarded: Guarded, asked: dict[str, object], complaint: str
) -> None:
    async with guarded.client(guarded.first_key) as admin:
        with pytest.raises(errors.InvalidRequest, match=complaint):
            await admin.create_key(**asked)  # type: ignore[arg-type]
        assert len(await admin.keys()) == 1


async def test_a_key_that_is_not_there_cannot_be_revoked(guarded: Guarded) -> None:
    async with guarded.client(guarded.first_key) as admin:
        with pytest.raises(errors.KeyNotFound, match="'key-none'"):
            await admin.revoke_key("key-none")
        made = await admin.create_key()
        once = await admin.revoke_key(made.key.key_id)
        assert await admin.revoke_key(made.key.key_id) == once


async def test_no_secret_is_stored_logged_or_listed(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with guarded_in(tmp_path) as one:
            async with one.client(one.first_key) as admin:
                made = await admin.create_key(tenant="acme")
                listed = await admin.keys()
            first = one.first_key
    kept = b"".join(path.read_bytes() for path in (tmp_path / "control").glob("state.db*"))
    for secret in (first, made.secret):
        assert secret not in repr(lines)
        assert secret not in repr(listed)
        assert secret.encode() not in kept
    assert digest_of(made.secret).encode() in kept
    assert digest_of(made.secret) not in repr(lines)
