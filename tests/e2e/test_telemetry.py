"""One request is one trace through all processes; metrics and health are there to be read."""

import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sllm import rpc
from tests.collector import Collector
from tests.e2e.cluster import Cluster, gateway_of, running
from tests.support import assert_eventually, wait_until

PHASES = {"QUEUED", "PLACED", "WORKER_START", "PREPARE", "ATTACH", "PREFILL"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector.running() as collector:
        yield collector


@pytest.fixture(scope="module")
def observed(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory, models: Path
) -> Iterator[Cluster]:
    """A cluster that exports its traces, with a deployment."""
    directory = tmp_path_factory.mktemp("observed")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for these servers alone
            patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
            ports = ["--metrics-port=0", "--probe-port=0"]
            observed = running(directory, nodes=1, options=ports)
            cluster = stack.enter_context(observed)
        cluster.client.deploy("seen", f"file://{models / 'tiny-llama'}")
        yield cluster


def test_a_cold_request_is_one_trace_through_all_processes(
    observed: Cluster, collector: Collector
) -> None:
    result = observed.client.complete("seen", "Hello", max_tokens=2)
    assert result.receipt.cold

    def complete() -> bool:
        services = {service for service, span in collector.spans() if span.trace_id == trace_id()}
        return services == {"sllm-control", "sllm-node", "sllm-worker"}

    def trace_id() -> bytes:
        requests = [span.trace_id for _, span in collector.spans() if span.name == "sllm.generate"]
        return requests[0] if requests else b"none yet"

    wait_until(complete)
    names = {span.name for _, span in collector.spans() if span.trace_id == trace_id()}
    assert {f"sllm.phase.{phase.lower()}" for phase in PHASES} <= names


def test_a_trace_is_one_tree_whose_phases_lie_within_the_request(
    observed: Cluster, collector: Collector
) -> None:
    """So that Jaeger draws it without warnings: no lost parents, nothing before its cause."""
    observed.client.complete("seen", "Hello again", max_tokens=2, request_id="r-tree")

    def spans() -> list[Span]:
        everything = [span for _, span in collector.spans()]
        roots = [one for one in everything if one.name == "sllm.generate" and _is_of("r-tree", one)]
        return [one for one in everything if roots and one.trace_id == roots[0].trace_id]

    def whole() -> bool:
        found = spans()
        ids = {one.span_id for one in found}
        parents = {one.parent_span_id for one in found if one.parent_span_id}
        return bool(found) and parents <= ids

    wait_until(whole)
    found = spans()
    (root,) = [one for one in found if not one.parent_span_id]
    assert root.name == "sllm.generate"
    for one in found:
        assert one.start_time_unix_nano <= one.end_time_unix_nano, one.name
        if one.name.startswith("sllm.phase."):
            assert root.start_time_unix_nano <= one.start_time_unix_nano, one.name
            assert one.end_time_unix_nano <= root.end_time_unix_nano, one.name


def test_a_request_by_http_is_of_its_callers_trace(
    observed: Cluster, collector: Collector, tmp_path: Path
) -> None:
    """The gateway's span is the caller's child, and the router's is the gateway's."""
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    body = json.dumps({"model": "seen", "prompt": "Hello", "max_tokens": 2}).encode()
    headers = {"traceparent": f"00-{trace}-{caller}-01", "content-type": "application/json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with gateway_of(observed.control, tmp_path) as gateway:
            url = f"http://{gateway.address}/v1/completions"
            with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
                assert answer.status == 200

    def spans() -> dict[str, Span]:
        return {
            one.name: one for _, one in collector.spans() if one.trace_id == bytes.fromhex(trace)
        }

    wait_until(lambda: {"POST /v1/completions", "sllm.generate"} <= spans().keys())
    door, router = spans()["POST /v1/completions"], spans()["sllm.generate"]
    assert door.parent_span_id == bytes.fromhex(caller)
    assert router.parent_span_id == door.span_id
    told = {one.key: one.value for one in door.attributes}
    assert told["http.response.status_code"].int_value == 200
    assert door.start_time_unix_nano <= router.start_time_unix_nano
    assert router.end_time_unix_nano <= door.end_time_unix_nano


def _is_of(request_id: str, span: Span) -> bool:
    return any(
        one.key == "sllm.request_id" and one.value.string_value == request_id
        for one in span.attributes
    )


def test_prometheus_shows_tokens_queues_first_tokens_tiers_and_loads(
    observed: Cluster, models: Path
) -> None:
    before = _first_tokens(_scrape(observed.control.metrics_port()))
    observed.client.deploy("counted", f"file://{models / 'tiny-llama'}")
    observed.client.complete("counted", "Hello", max_tokens=2)
    control, node = (_scrape(part.metrics_port()) for part in observed.parts)

    assert re.search(r'sllm_tokens_generated_total\{.*deployment="counted".*\} 2', control)
    assert _first_tokens(control) == before + 1
    assert "sllm_queue_depth" in control
    # As deploy/ asks for them.
    assert re.search(r'sllm_requests_total\{.*outcome="OK".*\}', control)
    assert re.search(r'sllm_instance_starts_total\{.*outcome="ok".*\}', control)
    assert re.search(
        r'sllm_time_to_first_token_seconds_bucket\{cold="true",.*le="0.05".*\}', control
    )
    assert re.search(r'sllm_tier_used_bytes\{.*tier="DRAM"\} [1-9]', node)
    assert re.search(r'sllm_load_bytes_total\{.*phase="read"\} [1-9]', node)


def _first_tokens(metrics: str) -> int:
    """How many requests have had their first token."""
    counts = re.findall(r"^sllm_time_to_first_token_seconds_count\{.*\} (\d+)", metrics, re.M)
    return sum(map(int, counts))


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text: str = response.read().decode()
        return text


async def test_probes_are_answered_on_a_port_of_their_own(observed: Cluster) -> None:
    services = ("DeploymentService", "NodeService")
    for part, service in zip(observed.parts, services, strict=True):
        lines = [json.loads(line) for line in part.log_text().splitlines()]
        (port,) = [one["port"] for one in lines if one["event"].endswith("probes_served")]
        asked = partial(rpc.is_serving, f"127.0.0.1:{port}", f"serverlessllm.v1.{service}")
        await assert_eventually(asked)


def _serves(stub: health_pb2_grpc.HealthStub, name: str) -> bool:
    reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def test_health_and_reflection_on_every_server(cluster: Cluster) -> None:
    services = {
        "control": {"DeploymentService", "InferenceService", "ClusterService", "FleetService"},
        "node-0": {"NodeService", "InferenceService", "MigrationService"},
        "node-1": {"NodeService", "InferenceService", "MigrationService"},
    }
    for part in cluster.parts:
        with grpc.insecure_channel(part.address) as channel:
            expected = {f"serverlessllm.v1.{name}" for name in services[part.name]}
            assert expected <= set(ProtoReflectionDescriptorDatabase(channel).get_services())
            stub = health_pb2_grpc.HealthStub(channel)
            for name in expected:  # a node's own once it has noticed that its zygotes are ready
                wait_until(partial(_serves, stub, name))
