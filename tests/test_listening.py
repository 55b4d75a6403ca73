"""Where a server may listen without certificates."""

import subprocess
import sys
from pathlib import Path

import pytest

from sllm import errors, listening, rpc
from sllm.tls.identity import Role
from tests.tls.certs import Certs

HERE = ("127.0.0.1", "127.9.9.9", "localhost", "a.localhost", "[::1]", "::1")
BEYOND = ("0.0.0.0", "[::]", "::", "10.0.0.1", "example.com", "", "localhost.example.com")


@pytest.mark.parametrize("host", HERE)
def test_on_this_machine_nothing_is_asked_for(host: str) -> None:
    listening.check(host, secured=False, insecure=False)


@pytest.mark.parametrize("host", BEYOND)
def test_beyond_it_takes_certificates_or_a_word(host: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="--insecure"):
        listening.check(host, secured=False, insecure=False)
    listening.check(host, secured=True, insecure=False)
    listening.check(host, secured=False, insecure=True)


async def test_every_grpc_server_asks(tmp_path: Path) -> None:
    server = rpc.Server()
    with pytest.raises(errors.InvalidArgument, match="no certificates"):
        await server.start("0.0.0.0:0", [])
    credentials = Certs(tmp_path / "ca").tls(Role.NODE).for_peers()
    assert await server.start("0.0.0.0:0", [], credentials=credentials)
    await server.stop(0)


@pytest.mark.parametrize(
    "arguments",
    [
        ("control", "--listen=0.0.0.0:0"),
        ("node", "--listen=0.0.0.0:0", "--advertise=here"),
        ("gateway", "--host=0.0.0.0", "--port=0"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_server_listens_beyond_the_machine_by_itself(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "sllm.cli.main", *arguments, f"--dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: INVALID_ARGUMENT: 0.0.0.0 is reached from beyond" in done.stderr
