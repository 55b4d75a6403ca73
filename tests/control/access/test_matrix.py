"""Every method of a control plane, called by everybody there is, over the wire."""

import itertools
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from sllm import errors, rpc
from sllm.control.access.rules import RULES, Rule
from sllm.control.replicas.carrying import CARRY
from sllm.control.services import PEERS
from sllm.control.tenants.names import DEFAULT
from sllm.control.types.access import CallerRole
from sllm.node.server import PEERS as NODE_PEERS
from sllm.tls.identity import Role
from tests.control.access.conftest import Guarded, guarded_in
from tests.fuzz.protocol import METHODS, Method
from tests.support import sent
from tests.tls.certs import dial_with

CONTROL: Final = [one for one in METHODS if one.server == "control"]
NODE: Final = [one for one in METHODS if one.server == "node"]
STRANGERS: Final = {
    "nothing": [],
    "an unknown key": [
        ("authorization", "Bearer sllm_0123456789abcdef0123456789abcdef0123456789a")
    ],
    "another scheme": [("authorization", "Basic KEY")],
    "no scheme": [("authorization", "KEY")],
    "two keys": [("authorization", "Bearer KEY"), ("authorization", "Bearer KEY")],
    "another header": [("x-api-key", "KEY")],
    "an expired key": [("authorization", "Bearer EXPIRED")],
    "a revoked key": [("authorization", "Bearer REVOKED")],
    "a token of nobody": [("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")],
}
"""What those show who are nobody. KEY stands for a good one of an admin."""
TENANTS: Final = (DEFAULT, "acme")
REFUSALS: Final = (errors.Unauthenticated, errors.PermissionDenied)


def test_every_method_has_a_rule_and_no_other_does() -> None:
    assert {one.path for one in CONTROL} | {CARRY} == set(RULES)  # of several, that alone
    assert {path for path, rule in RULES.items() if rule.peers} == {
        *(one.path for one in CONTROL if one.service in PEERS),
        CARRY,
    }


def test_every_service_of_nodes_is_for_peers_alone() -> None:
    standard = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert {one.service for one in NODE} - standard == set(NODE_PEERS)


def test_what_changes_something_is_not_for_everybody() -> None:
    assert all(rule.role is not None for rule in RULES.values() if rule.changes)


async def outcome(
    channel: grpc.aio.Channel, method: Method, metadata: Any = (), request: bytes = b""
) -> errors.SllmError | None:
    """What comes of a call: an error, or None if its first answer is there, or it goes on."""
    gives = "stream" if method.gives_stream else "unary"
    sends = "stream" if method.sends_stream else "unary"
    make: Any = getattr(channel, f"{sends}_{gives}")
    asked = () if method.sends_stream else (request,)
    call = make(method.path)(*asked, metadata=tuple(metadata), timeout=10.0)
    writing = sent(call, _once(request)) if method.sends_stream else nullcontext()
    try:
        with rpc.typed_errors():
            async with writing:
                await (call.read() if method.gives_stream else call)
    except errors.SllmError as error:
        return error
    finally:
        call.cancel()
    return None


async def _once(request: bytes) -> AsyncIterator[bytes]:
    yield request


class Everybody:
    """Keys of every role, and of those who are nobody any more."""

    def __init__(self, guarded: Guarded) -> None:
        self.guarded = guarded
        self.secrets: dict[str, str] = {"KEY": guarded.first_key}

    async def prepare(self) -> None:
        async with self.guarded.client(self.guarded.first_key) as admin:
            for tenant, role in itertools.product(TENANTS, CallerRole):
                created = await admin.create_key(role=role.name, tenant=tenant)
                self.secrets[f"{role.name} of {tenant}"] = created.secret
            expired = await admin.create_key(role="admin", ttl=0.001)
            revoked = await admin.create_key(role="admin")
            await admin.revoke_key(revoked.key.key_id)
            self.secrets |= {"EXPIRED": expired.secret, "REVOKED": revoked.secret}

    def metadata(self, template: list[tuple[str, str]]) -> list[tuple[str, str]]:
        filled = []
        for name, value in template:
            scheme, _, word = value.rpartition(" ")
            filled.append((name, f"{scheme} {self.secrets.get(word, word)}".strip()))
        return filled

    def of_role(self, role: CallerRole, tenant: str = DEFAULT) -> list[tuple[str, str]]:
        return [("authorization", f"bearer {self.secrets[f'{role.name} of {tenant}']}")]


async def test_every_cell(tmp_path: Path) -> None:
    """(role, tenant, method): let in, or refused with one reason and message, before it is read."""
    async with guarded_in(tmp_path) as guarded:
        everybody = Everybody(guarded)
        await everybody.prepare()
        dial = dial_with(None, guarded.certs.authority, Role.CONTROL)
        async with dial(guarded.address) as channel:
            for method in CONTROL:
                rule = RULES[method.path]
                if rule.role is not None:
                    await _strangers_are_refused(channel, method, everybody)
                    await _roles_are_told_apart(channel, method, everybody, rule)
                elif rule.peers:
                    found = await outcome(channel, method, everybody.of_role(CallerRole.ADMIN))
                    assert type(found) is errors.PermissionDenied, method
                else:
                    assert not isinstance(await outcome(channel, method), REFUSALS), method


async def _strangers_are_refused(channel: Any, method: Method, everybody: Everybody) -> None:
    said = set()
    for who, template in STRANGERS.items():
        no_message = b"\xff\xff\xff"
        found = await outcome(channel, method, everybody.metadata(template), no_message)
        assert type(found) is errors.Unauthenticated, (method, who, found)
        said.add((found.message, found.retry_after, *found.metadata))
    assert len(said) == 1, said


async def _roles_are_told_apart(
    channel: Any, method: Method, everybody: Everybody, rule: Rule
) -> None:
    assert rule.role is not None
    for tenant, role in itertools.product(TENANTS, CallerRole):
        found = await outcome(channel, method, everybody.of_role(role, tenant))
        of_others = rule.shared and tenant != DEFAULT and role is not CallerRole.ADMIN
        if role < rule.role or of_others:
            assert type(found) is errors.PermissionDenied, (method, tenant, role, found)
        else:
            assert not isinstance(found, REFUSALS), (method, tenant, role, found)


@pytest.mark.parametrize("role", [None, *Role])
async def test_reports_are_taken_of_nodes_alone(guarded: Guarded, role: Role | None) -> None:
    (report,) = [one for one in CONTROL if one.name == "Report"]
    own = guarded.certs.of(role) if role else None
    dial = dial_with(own, guarded.certs.authority, Role.CONTROL)
    async with dial(guarded.addresses.peers) as channel:
        found = await outcome(channel, report)
    refused = errors.Unreachable if role is None else errors.PermissionDenied
    assert (type(found) is refused) == (role is not Role.NODE), found


async def test_a_gateway_is_nobody_without_its_callers_key(guarded: Guarded) -> None:
    dial = dial_with(guarded.certs.of(Role.GATEWAY), guarded.certs.authority, Role.CONTROL)
    (listing,) = [one for one in CONTROL if one.name == "ListDeployments"]
    async with dial(guarded.addresses.peers) as channel:
        assert type(await outcome(channel, listing)) is errors.Unauthenticated
        shown = [("authorization", f"Bearer {guarded.first_key}")]
        assert await outcome(channel, listing, shown) is None


async def test_a_method_without_a_rule_is_refused_and_an_unknown_one_is_unknown(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listing,) = [one for one in CONTROL if one.name == "ListDeployments"]
    monkeypatch.delitem(RULES, listing.path)
    shown = [("authorization", f"Bearer {guarded.first_key}")]
    dial = dial_with(None, guarded.certs.authority, Role.CONTROL)
    async with dial(guarded.address) as channel:
        assert type(await outcome(channel, listing, shown)) is errors.PermissionDenied
        call: Any = channel.unary_unary("/serverlessllm.v1.DeploymentService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=shown)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
