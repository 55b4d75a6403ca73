"""A cluster with certificates and keys, each server a process, and everybody who may come by."""

import asyncio
import http.client
import json
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from serverlessllm.v1 import peer_service_pb2
from serverlessllm.v1.peer_service_pb2_grpc import PeerServiceStub

import sllm
from sllm import errors, rpc
from sllm.tls.identity import Role
from tests.collector import Collector
from tests.e2e.cluster import Part
from tests.support import wait_until
from tests.tls.certs import Certs, dial_with

MODEL = str(Path(__file__).parents[2] / "examples" / "tiny-llama")
PROMPT = "a planted prompt of nobody else"
SIZES = ("--dram=128MiB", "--ssd=1GiB", "--kv=64MiB", "--engines=transformers")


@dataclass(frozen=True, slots=True)
class Trusted:
    """The cluster, and who belongs to it."""

    directory: Path
    certs: Certs
    control: Part
    node: Part
    gateway: Part
    collector: Collector

    @property
    def admin_key(self) -> str:
        return (self.directory / "control" / "admin-key").read_text().strip()

    def client(self, key: str) -> sllm.Client:
        return sllm.Client(self.control.address, api_key=key, tls_ca=str(self.certs.authority))


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusted]:
    directory = tmp_path_factory.mktemp("trusted")
    certs = Certs(directory / "ca")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        collector = stack.enter_context(Collector.running())
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")

        def part(name: str, role: Role, *arguments: str) -> Part:
            own = ["--tls", str(certs.of(role)), "--dir", str(directory / name)]
            one = Part(name, directory, [name, *own, *arguments])
            stack.callback(one.end)
            one.wait_until_up()
            return one

        control = part("control", Role.CONTROL, "--metrics-port=0")
        to_control = ("--control", control.peers)
        node = part("node", Role.NODE, *to_control, "--metrics-port=0", *SIZES)
        gateway = part("gateway", Role.GATEWAY, *to_control, "--metrics-port=0")
        one = Trusted(directory, certs, control, node, gateway, collector)
        with one.client(one.admin_key) as admin:
            wait_until(admin.nodes, 60.0)
            admin.deploy("tiny", MODEL)
        yield one


def test_who_has_a_key_is_served_by_grpc_and_by_http(trusted: Trusted) -> None:
    with trusted.client(trusted.admin_key) as admin:
        user = admin.create_key(role="user", note="for tests")
        with trusted.client(user.secret) as client:
            answer = client.complete("tiny", PROMPT, max_tokens=4, temperature=0.0)
        base = f"http://{trusted.gateway.address}/v1"
        with openai.OpenAI(base_url=base, api_key=user.secret, max_retries=0) as http:
            again = http.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=4, temperature=0.0
            )
        assert again.choices[0].text == answer.text
        admin.revoke_key(user.key.key_id)
    with trusted.client(user.secret) as client, pytest.raises(errors.Unauthenticated):
        client.complete("tiny", PROMPT)
    with (
        openai.OpenAI(base_url=base, api_key=user.secret, max_retries=0) as http,
        pytest.raises(openai.AuthenticationError),
    ):
        http.completions.create(model="tiny", prompt=PROMPT)
    _check_nothing_is_written(trusted, user.secret)


def _check_nothing_is_written(trusted: Trusted, secret: str) -> None:
    """Of keys and prompts in logs and spans; and the audit has what was done."""
    wait_until(lambda: "sllm.generate" in trusted.collector.span_names(), 30.0)
    logs = {one.name: one.log_text() for one in (trusted.control, trusted.node, trusted.gateway)}
    told = repr(trusted.collector.spans()) + repr(trusted.collector.metrics.requests)
    for planted in (secret, trusted.admin_key, PROMPT):
        assert planted not in told
        assert not [name for name, text in logs.items() if planted in text]
    audit = [json.loads(line) for line in logs["control"].splitlines() if '"audit"' in line]
    done = [one["method"].rpartition("/")[2] for one in audit]
    assert done == ["Deploy", "CreateKey", "RevokeKey"]


WITHOUT = ("nothing", "no certificate", "a foreign certificate", "an expired one")


@pytest.fixture(scope="module")
def strangers(trusted: Trusted, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    foreign = Certs(tmp_path_factory.mktemp("foreign") / "ca")
    return {
        "no certificate": None,
        "a foreign certificate": foreign.of(Role.CONTROL),
        "an expired one": trusted.certs.of(Role.CONTROL, days=0),
    }


@pytest.mark.parametrize("what", WITHOUT)
async def test_to_others_every_port_of_peers_is_closed(
    trusted: Trusted, strangers: dict[str, Path | None], what: str
) -> None:
    ports = {Role.CONTROL: trusted.control.peers, Role.NODE: trusted.node.address}
    for role, address in ports.items():
        dial: rpc.Dial = rpc.channel
        if what != "nothing":
            dial = dial_with(strangers[what], trusted.certs.authority, role)
        assert not await rpc.is_serving(address, "", dial)
    mine = trusted.certs.tls(Role.CONTROL)
    for role, address in ports.items():
        assert await rpc.is_serving(address, "", mine.dial(role))


async def test_callers_come_in_by_tls_alone(trusted: Trusted) -> None:
    assert not await rpc.is_serving(trusted.control.address, "")
    dial = dial_with(None, trusted.certs.authority, Role.CONTROL)
    assert await rpc.is_serving(trusted.control.address, "", dial)


@pytest.mark.parametrize("role", [Role.NODE, Role.GATEWAY, Role.METRICS])
async def test_a_node_obeys_control_planes_alone(trusted: Trusted, role: Role) -> None:
    async with trusted.certs.tls(role).dial(Role.NODE)(trusted.node.address) as channel:
        stop: Any = channel.unary_unary("/serverlessllm.v1.NodeService/StopInstance")
        with pytest.raises(errors.PermissionDenied), rpc.typed_errors():
            await stop(b"", timeout=10.0)


async def test_nodes_give_chunks_to_nodes_alone(trusted: Trusted) -> None:
    origin = peer_service_pb2.CheckpointOrigin(source="https://nowhere.test/model")
    asked = peer_service_pb2.FetchRequest(origin=origin)
    for role in (Role.CONTROL, Role.GATEWAY, Role.METRICS):
        async with trusted.certs.tls(role).dial(Role.NODE)(trusted.node.address) as channel:
            with pytest.raises(errors.PermissionDenied), rpc.typed_errors():
                await PeerServiceStub(channel).Fetch(asked, timeout=10.0).read()
    dial = trusted.certs.tls(Role.NODE).dial_for_threads(Role.NODE)
    with dial(trusted.node.address) as own, pytest.raises(grpc.RpcError) as refused:
        await asyncio.to_thread(next, PeerServiceStub(own).Fetch(asked, timeout=10.0))
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("what", [*WITHOUT, "the cluster's own"])
def test_metrics_are_for_the_cluster_alone(
    trusted: Trusted, strangers: dict[str, Path | None], what: str
) -> None:
    own = trusted.certs.of(Role.METRICS) if what == "the cluster's own" else strangers.get(what)
    scheme = "http" if what == "nothing" else "https"
    for part in (trusted.control, trusted.node, trusted.gateway):
        url = f"{scheme}://127.0.0.1:{part.metrics_port()}/metrics"
        assert _reads(url, trusted.certs.authority, own) == (what == "the cluster's own")


def _reads(url: str, authority: Path, own: Path | None) -> bool:
    context = ssl.create_default_context(cafile=str(authority))
    if own:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    try:
        with urllib.request.urlopen(url, timeout=10.0, context=context) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def test_workers_are_reached_by_their_user_alone(trusted: Trusted) -> None:
    sockets = trusted.directory / "node" / "run"
    assert sockets.stat().st_mode & 0o077 == 0
