"""What the router tells OpenTelemetry of a request, and what reaches the node."""

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sllm import errors
from sllm.control import metrics
from sllm.control.requests import spans
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

NO_ADAPTER = ("adapter", "")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    return exporter


def _named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_a_request_is_a_span_with_a_child_for_each_phase(
    cluster: Cluster, node: FakeNode, exported: InMemorySpanExporter
) -> None:
    await cluster.caller.deploy()
    stream = await cluster.caller.complete(request_id="traced")
    await assert_eventually(lambda: _named(exported, "sllm.generate"))

    (root,) = _named(exported, "sllm.generate")
    assert root.attributes is not None
    assert root.attributes["sllm.deployment"] == "tiny"
    assert root.attributes["sllm.request_id"] == "traced"
    assert root.attributes["sllm.cold"] is True
    children = [one for one in exported.get_finished_spans() if one.parent == root.context]
    assert {one.name for one in children} == {
        "sllm.phase.queued",
        "sllm.phase.placed",
        "sllm.phase.read_ssd",
        "sllm.phase.prefill",
    }
    for child, phase in zip(children, stream.receipt.phases, strict=True):
        assert child.start_time is not None
        assert child.end_time is not None
        assert child.end_time - child.start_time == phase.duration.ToNanoseconds()


async def test_the_trace_goes_on_to_the_node(
    cluster: Cluster, node: FakeNode, exported: InMemorySpanExporter
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    await assert_eventually(lambda: _named(exported, "sllm.generate"))
    (root,) = _named(exported, "sllm.generate")
    assert root.context is not None
    assert trace.format_trace_id(root.context.trace_id) in node.traceparents[-1]
    assert trace.format_span_id(root.context.span_id) in node.traceparents[-1]


async def test_requests_and_tokens_are_counted(
    cluster: Cluster, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    monkeypatch.setattr(metrics, "requests", meter.create_counter("requests"))
    monkeypatch.setattr(metrics, "generated_tokens", meter.create_counter("tokens"))
    monkeypatch.setattr(metrics, "time_to_first_token", meter.create_histogram("ttft"))
    monkeypatch.setattr(metrics, "instance_starts", meter.create_counter("starts"))
    await cluster.caller.deploy()
    await cluster.caller.complete(max_tokens=5)
    await cluster.caller.complete(max_tokens=5)
    node.script.generate_errors.append(errors.ContextExceeded("too long"))
    with pytest.raises(errors.ContextExceeded):
        await cluster.caller.complete()
    await assert_eventually(
        lambda: (
            _points(reader, "requests")
            == {
                (NO_ADAPTER, ("deployment", "tiny"), ("outcome", "OK")): 2,
                (NO_ADAPTER, ("deployment", "tiny"), ("outcome", "CONTEXT_EXCEEDED")): 1,
            }
        )
    )
    assert _points(reader, "tokens") == {(NO_ADAPTER, ("deployment", "tiny")): 10}
    assert _points(reader, "starts") == {(("deployment", "tiny"), ("outcome", "ok")): 1}
    assert _points(reader, "ttft") == {(("cold", True),): 1, (("cold", False),): 1}


def _points(reader: InMemoryMetricReader, name: str) -> dict[tuple[tuple[str, object], ...], int]:
    """The counts of one metric, by attributes."""
    data = reader.get_metrics_data()
    found: dict[tuple[tuple[str, object], ...], int] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points if metric.name == name else ():
                    count: int = getattr(point, "value", 0) or getattr(point, "count", 0)
                    found[tuple(sorted((point.attributes or {}).items()))] = count
    return found


LEADS_AGAIN = """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
from sllm.control import metrics as control
from sllm.control.tenants.usage import Usage

def told():
    lines = generate_latest().decode().splitlines()
    kept = ("sllm_queue_", "sllm_tenant_requests")
    print(*(line.partition("{")[0] + line.split()[-1] for line in lines if line.startswith(kept)))

first = control.Observed(lambda: {"a": 3, "b": 4}, {"acme": Usage(requests=7)})
second = control.Observed(lambda: {"a": 2}, {"acme": Usage(requests=2)})
control.observe(first)
control.observe(second)
told()
control.observe_no_more(first)
told()
control.observe_no_more(second)
told()
"""


def test_of_several_times_that_it_leads_the_last_is_measured() -> None:
    command = [sys.executable, "-c", LEADS_AGAIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    last = "sllm_queue_depth2.0 sllm_queue_waiting2.0 sllm_tenant_requests_total2.0"
    assert done.stdout.splitlines() == [last, last, ""], done.stderr
