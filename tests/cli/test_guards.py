"""`sllm up --auth` and `--tls`."""

import asyncio
import errno
import secrets
import signal
import ssl
import stat
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

import sllm
from sllm import errors
from sllm.cli import cluster
from sllm.cli.guards import Guards
from sllm.cli.plan import Plan
from tests.cli.test_cluster import Up, _up
from tests.support import assert_eventually, wait_until


def plan_of(directory: Path, guards: Guards | None) -> Plan:
    return Plan(directory, 1, 0, None, 1 << 26, None, None, guards=guards)


def test_files_are_made_once_and_certificates_again(tmp_path: Path) -> None:
    guards = Guards(tmp_path, tls=True)
    kept = tmp_path / "certs" / "ca.key", guards.key_file
    changed = tmp_path / "certs" / "node" / "tls.crt", tmp_path / "certs" / "control" / "tls.key"
    seen = []
    for _ in range(2):
        guards.make()
        seen.append([path.read_bytes() for path in (*kept, *changed)])
    assert seen[0][:2] == seen[1][:2]
    assert seen[0][2] != seen[1][2]
    assert not [path for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_each_server_is_told_what_guards_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Guards(tmp_path, tls=True))
    certs = tmp_path / "certs"
    for command, role in (
        (plan.control(), "control"),
        (plan.node(1, "a:1"), "node"),
        (plan.gateway("a:1"), "gateway"),
    ):
        at = command.arguments.index("--tls")
        assert command.arguments[at + 1] == str(certs / role)
    asking = plan_of(tmp_path, Guards(tmp_path))
    assert "--auth" in asking.control().arguments
    assert "--tls" not in (*asking.control().arguments, *asking.node(1, "a:1").arguments)
    assert "--auth" not in plan_of(tmp_path, None).control().arguments


def test_a_key_that_came_to_nothing_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full when it was to be written, or the machine went down."""
    guards = Guards(tmp_path)

    def full(_: int) -> str:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(secrets, "token_urlsafe", full)
        with pytest.raises(OSError, match="no space"):
            guards.make()
    guards.make()
    assert len(guards.key_file.read_text().strip()) >= 32
    assert stat.S_IMODE(guards.key_file.stat().st_mode) == 0o600


async def test_certificates_that_cannot_be_renewed_now_are_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllm.cli.guards._RENEW_SECONDS", 0.01)
    guards = Guards(tmp_path, tls=True)
    guards.make()
    before = (tmp_path / "certs" / "node" / "tls.crt").read_bytes()
    (tmp_path / "certs" / "ca.crt").rename(tmp_path / "away")
    renewing = asyncio.create_task(guards.renew())
    try:
        with capture_logs() as logs:
            await assert_eventually(lambda: logs)
            assert logs[0]["event"] == "up.not_renewed"
            assert not renewing.done()
            (tmp_path / "away").rename(tmp_path / "certs" / "ca.crt")
            node = tmp_path / "certs" / "node" / "tls.crt"
            await assert_eventually(lambda: node.read_bytes() != before)
    finally:
        renewing.cancel()


async def test_an_authority_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "ca.key").write_text("none")
    with pytest.raises(errors.StartFailed, match="no key or certificates can be made"):
        await cluster._guard(Guards(tmp_path, tls=True))


def test_a_guarded_cluster_comes_up_and_goes_on_when_its_control_plane_dies(tmp_path: Path) -> None:
    with _up(tmp_path, "--tls") as process:
        up = Up(process)
        said = up.read_line()
        key, authority = (tmp_path / "admin-key").read_text().strip(), tmp_path / "certs" / "ca.crt"
        assert said == (
            f"export SLLM_CONTROL={up.address} SLLM_TLS_CA={authority} "
            f'SLLM_API_KEY="$(cat {tmp_path / "admin-key"})"'
        )
        assert ssl.create_default_context(cafile=authority).get_ca_certs()
        nobody = sllm.Client(up.address, api_key="", tls_ca=str(authority))
        with nobody, pytest.raises(errors.Unauthenticated):
            nobody.nodes()
        with sllm.Client(up.address, api_key=key, tls_ca=str(authority)) as admin:
            assert [node.node_id for node in admin.nodes()] == ["node-1"]
            control: psutil.Process = up.server("control")
            control.kill()
            control.wait()

            def is_back() -> bool:
                try:
                    return [node.node_id for node in admin.nodes()] == ["node-1"]
                except errors.Unavailable:
                    return False

            wait_until(is_back, 60.0)
        assert up.end(signal.SIGINT) == 0
