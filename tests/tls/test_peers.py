"""A port of the cluster's own processes, and everybody who might call there."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sllm import errors, rpc
from sllm.tls import certificates
from sllm.tls.cluster import ClusterTls
from sllm.tls.identity import Role
from tests.support import assert_eventually
from tests.tls.certs import Certs, dial_with

SERVICE = "tests.Orders"


class Orders:
    """A server that takes orders of control planes alone."""

    def __init__(self, tls: ClusterTls) -> None:
        self.server = rpc.Server(before=[tls.guard({SERVICE: (Role.CONTROL,)})])
        self.tls = tls
        self.taken = 0
        handlers = {
            "Do": grpc.unary_unary_rpc_method_handler(self._do, bytes, bytes),
            "Count": grpc.unary_stream_rpc_method_handler(self._count, bytes, bytes),
        }
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self.server.grpc.add_generic_rpc_handlers((generic,))

    async def start(self) -> str:
        port = await self.server.start("127.0.0.1:0", [], credentials=self.tls.for_peers())
        return f"127.0.0.1:{port}"

    async def _do(self, request: bytes, context: Any) -> bytes:
        self.taken += 1
        return request

    async def _count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(1_000_000):
            yield str(number).encode()
            await asyncio.sleep(0.01)


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path / "ca")


@pytest.fixture
async def orders(certs: Certs) -> AsyncIterator[tuple[Orders, str]]:
    served = Orders(certs.tls(Role.NODE))
    yield served, await served.start()
    await served.server.stop(0)


async def _do(dial: rpc.Dial, address: str) -> bytes:
    async with dial(address) as channel:
        with rpc.typed_errors():
            answer: bytes = await _method(channel, "Do")(b"order", timeout=5.0)
            return answer


def _method(channel: Any, name: str) -> Any:
    kind = channel.unary_stream if name == "Count" else channel.unary_unary
    return kind(f"/{SERVICE}/{name}")


async def test_a_control_plane_is_obeyed(orders: tuple[Orders, str], certs: Certs) -> None:
    _, address = orders
    assert await _do(certs.tls(Role.CONTROL).dial(Role.NODE), address) == b"order"


@pytest.mark.parametrize("role", [Role.NODE, Role.GATEWAY, Role.METRICS])
async def test_peers_of_other_roles_are_refused(
    orders: tuple[Orders, str], certs: Certs, role: Role
) -> None:
    served, address = orders
    with pytest.raises(errors.PermissionDenied, match="the cluster's own processes"):
        await _do(certs.tls(role).dial(Role.NODE), address)
    assert not served.taken


async def test_another_clusters_control_plane_is_refused(
    orders: tuple[Orders, str], certs: Certs
) -> None:
    other = certs.of(Role.CONTROL, cluster="other")
    with pytest.raises(errors.PermissionDenied):
        await _do(dial_with(other, certs.authority, Role.NODE), orders[1])
    assert not orders[0].taken


WITHOUT = ("nothing", "no certificate", "a foreign certificate", "an expired one")


@pytest.mark.parametrize("what", WITHOUT)
async def test_who_is_not_of_the_cluster_gets_nothing(
    orders: tuple[Orders, str], certs: Certs, tmp_path: Path, what: str
) -> None:
    """Not even an answer that it is refused: there is no connection. Nor health or reflection."""
    served, address = orders
    foreign = Certs(tmp_path / "foreign").of(Role.CONTROL)
    dials: dict[str, rpc.Dial] = {
        "nothing": rpc.channel,
        "no certificate": dial_with(None, certs.authority, Role.NODE),
        "a foreign certificate": dial_with(foreign, certs.authority, Role.NODE),
        "an expired one": dial_with(certs.of(Role.CONTROL, days=0), certs.authority, Role.NODE),
    }
    with pytest.raises((errors.Unreachable, errors.DeadlineExceeded)):
        await _do(dials[what], address)
    assert not await rpc.is_serving(address, "", dials[what])
    assert not served.taken


async def test_a_server_of_another_role_or_authority_is_not_believed(
    orders: tuple[Orders, str], certs: Certs, tmp_path: Path
) -> None:
    _, address = orders
    mine = certs.tls(Role.CONTROL)
    with pytest.raises(errors.Unreachable):
        await _do(mine.dial(Role.CONTROL), address)
    with pytest.raises(errors.Unreachable):
        await _do(Certs(tmp_path / "foreign").tls(Role.CONTROL).dial(Role.NODE), address)


async def test_all_certificates_are_rotated_while_a_stream_runs(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To another authority even, by way of a time in which both are trusted."""
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.0)
    at_node, at_control = certs.of(Role.NODE), certs.of(Role.CONTROL)
    served = Orders(ClusterTls(at_node, Role.NODE))
    address = await served.start()
    later = Certs(tmp_path / "later")
    new = {at_node: later.of(Role.NODE), at_control: later.of(Role.CONTROL)}

    async with ClusterTls(at_control, Role.CONTROL).dial(Role.NODE)(address) as channel:
        do = _method(channel, "Do")
        stream = _method(channel, "Count")(b"")
        assert await stream.read() == b"0"

        both = certs.authority.read_bytes() + later.authority.read_bytes()
        for directory in new:
            (directory / "ca.crt").write_bytes(both)
        assert await do(b"both") == b"both"
        for directory, renewed in new.items():
            for name in ("tls.key", "tls.crt"):
                shutil.copy(renewed / name, directory / name)
        assert await do(b"new") == b"new"
        for directory in new:
            (directory / "ca.crt").write_bytes(later.authority.read_bytes())
        assert await do(b"only new") == b"only new"

        with pytest.raises(errors.Unreachable):  # the old authority is worth nothing any more
            await _do(dial_with(certs.of(Role.CONTROL), later.authority, Role.NODE), address)
        for number in range(1, 5):
            assert await stream.read() == str(number).encode()
        stream.cancel()
    await served.server.stop(0)


async def test_a_channel_that_gave_way_is_closed_with_its_last_call(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.0)
    served = Orders(certs.tls(Role.NODE))
    address = await served.start()
    mine = certs.of(Role.CONTROL)
    async with ClusterTls(mine, Role.CONTROL).dial(Role.NODE)(address) as channel:
        stream = _method(channel, "Count")(b"")
        await stream.read()
        certs.of(Role.CONTROL)
        await _method(channel, "Do")(b"")

        def retired() -> int:
            return sum(task.get_name() == "retired channel" for task in asyncio.all_tasks())

        assert retired() == 1
        await stream.read()
        stream.cancel()
        await assert_eventually(lambda: not retired())
    await served.server.stop(0)


async def test_a_path_that_names_no_method_is_none(
    certs: Certs, orders: tuple[Orders, str]
) -> None:
    dial = dial_with(certs.of(Role.CONTROL), certs.authority, Role.NODE)
    async with dial(orders[1]) as channel:
        for path in ("nothing", "/", "//", "/nothing", f"/{SERVICE}/Do/it"):
            ask: Any = channel.unary_unary(path)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(b"", timeout=20.0)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, path
