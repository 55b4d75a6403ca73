"""`sllm keys` and `sllm certs`."""

import json
import time
from pathlib import Path

import pytest
from google.protobuf import timestamp_pb2
from serverlessllm.v1 import key_service_pb2 as pb

from sllm import config
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl

SECRET = "sllm_planted"


def _moment(seconds: float) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=int(seconds))


def key(key_id: str = "key-1", **fields: timestamp_pb2.Timestamp) -> pb.Key:
    role, made = pb.CALLER_ROLE_OPERATOR, _moment(1_700_000_000)
    return pb.Key(key_id=key_id, tenant="acme", role=role, created_at=made, note="CI", **fields)


def test_create_prints_the_secret_alone(run: Run, control: FakeControl) -> None:
    control.reply("CreateKey", pb.CreateKeyResponse(key=key(), secret=SECRET))
    asked = ("--role", "operator", "--tenant", "acme", "--expires", "30d", "--note", "CI")
    done = run("keys", "create", *asked)
    assert (done.code, done.out) == (0, f"{SECRET}\n")
    assert SECRET not in done.err
    (request,) = control.requests["CreateKey"]
    assert (request.tenant, request.role, request.note) == ("acme", pb.CALLER_ROLE_OPERATOR, "CI")
    assert request.ttl.seconds == 30 * 86_400
    assert request.request_id


def test_ls_tells_which_count(run: Run, control: FakeControl) -> None:
    now = time.time()
    listed = [
        key(),
        key("key-2", expires_at=_moment(now - 1)),
        key("key-3", expires_at=_moment(now + 9e4)),
        key("key-4", revoked_at=_moment(now)),
    ]
    for _ in range(2):
        control.reply("ListKeys", pb.ListKeysResponse(keys=listed))
    rows = run("keys", "ls").out.splitlines()
    states = [" good ", " expired ", " good until ", " revoked "]
    assert all(state in row for state, row in zip(states, rows[1:], strict=True))
    assert [one["key_id"] for one in json.loads(run("keys", "ls", "--json").out)] == [
        f"key-{number}" for number in range(1, 5)
    ]


def test_revoke(run: Run, control: FakeControl) -> None:
    control.reply("RevokeKey", pb.RevokeKeyResponse(key=key(revoked_at=_moment(1))))
    assert run("keys", "revoke", "key-1").out == "key-1: revoked\n"
    assert control.requests["RevokeKey"][0].key_id == "key-1"


def test_the_key_of_the_environment_goes_along(
    run: Run, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.API_KEY_VARIABLE, SECRET)
    control.reply("ListKeys", pb.ListKeysResponse())
    run("keys", "ls")
    assert control.metadata["ListKeys"][0]["authorization"] == f"Bearer {SECRET}"


def test_certificates_are_made_shown_and_made_again(run: Run, tmp_path: Path) -> None:
    ca = str(tmp_path / "ca")
    assert run("certs", "init", "--ca", ca).out == f"{ca}/ca.crt\n"
    assert "is there already" in run("certs", "init", "--ca", ca).err
    for _ in range(2):
        issued = run("certs", "issue", "node", "control", "--ca", ca, "--host", "10.0.0.1")
        assert issued.out.startswith(f"{ca}/node: node.default.sllm.internal, control.default.")
    shown = json.loads(run("certs", "show", f"{ca}/node", "--json").out)
    assert shown["names"] == ["control.default.sllm.internal", "node.default.sllm.internal"]
    assert "no role" in run("certs", "issue", "king", "--ca", ca).err
    assert run("certs", "revoke", f"{ca}/node", "--ca", ca).out.startswith(f"{ca}/ca.crl")
    assert "is no certificate" in run("certs", "revoke", f"{ca}/none", "--ca", ca).err


def test_an_authority_that_cannot_be_read_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.TLS_CA_VARIABLE, "/nowhere/ca.crt")
    done = run("ls")
    assert done.code == 1
    assert "cannot be read from /nowhere/ca.crt" in done.err
