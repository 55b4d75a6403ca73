"""Each test runs a process of its own: OpenTelemetry's providers are set once for a process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

TIMEOUT = 60


class Traces(TraceServiceServicer):
    """The part of an OTLP collector that takes spans."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []

    def Export(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()


class Metrics(MetricsServiceServicer):
    """The part of an OTLP collector that takes metrics."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []

    def Export(
        self, request: ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> ExportMetricsServiceResponse:
        self.requests.append(request)
        return ExportMetricsServiceResponse()


class Collector:
    """An OTLP collector on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.traces, self.metrics = Traces(), Metrics()
        self.server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self.traces, self.server)  # type: ignore[no-untyped-call]  # generated
        add_MetricsServiceServicer_to_server(self.metrics, self.server)  # type: ignore[no-untyped-call]  # generated
        self.endpoint = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def span_names(self) -> list[str]:
        """The names of all spans that came."""
        return [
            span.name
            for request in self.traces.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metric_names(self) -> list[str]:
        """The names of all metrics that came."""
        return [
            metric.name
            for request in self.metrics.requests
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def identities(self) -> list[dict[str, str]]:
        """The attributes of the processes that spans came from."""
        return [
            {one.key: one.value.string_value for one in resource.resource.attributes}
            for request in self.traces.requests
            for resource in request.resource_spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    collector.server.start()
    yield collector
    collector.server.stop(None).wait()


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process without OpenTelemetry variables but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )


A_SPAN = """
from opentelemetry import metrics, trace
from sllm import telemetry

tracer = trace.get_tracer("sllm")  # before configure, as modules do
counter = metrics.get_meter("sllm").create_counter("sllm.test.requests")
configured = telemetry.configure("sllm-test", instance_id="one")
with tracer.start_as_current_span("the work"):
    counter.add(3)
configured.shutdown()
"""


def test_spans_and_metrics_reach_an_otlp_collector(collector: Collector) -> None:
    run(A_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)

    assert collector.span_names() == ["the work"]
    assert "sllm.test.requests" in collector.metric_names()
    (identity,) = collector.identities()
    assert (identity["service.name"], identity["service.instance.id"]) == ("sllm-test", "one")


def test_one_signal_can_be_exported_alone(collector: Collector) -> None:
    run(A_SPAN, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector.endpoint)

    assert collector.span_names() == ["the work"]
    assert collector.metric_names() == []


@pytest.mark.parametrize(
    "variable", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}]
)
def test_what_is_switched_off_is_not_exported(
    collector: Collector, variable: dict[str, str]
) -> None:
    run(A_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **variable)

    assert collector.span_names() == []


FORKED = """
import os
from opentelemetry import trace
from sllm import telemetry

tracer = trace.get_tracer("sllm")
child = os.fork()
if child == 0:
    configured = telemetry.configure("sllm-worker", instance_id="two")
    with tracer.start_as_current_span("work in a child"):
        pass
    configured.shutdown()
    os._exit(0)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_can_be_configured(collector: Collector) -> None:
    run(FORKED, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)

    assert collector.span_names() == ["work in a child"]


SCRAPE = """
import urllib.request
from opentelemetry import metrics
from sllm import telemetry

configured = telemetry.configure("sllm-test", instance_id="one", metrics_port=0)
metrics.get_meter("sllm").create_counter("sllm.test.requests").add(3)
url = f"http://127.0.0.1:{configured.metrics_port}/metrics"
print(urllib.request.urlopen(url, timeout=10).read().decode())
configured.shutdown()
try:
    urllib.request.urlopen(url, timeout=10)
except OSError:
    print("gone")
"""


def test_prometheus_is_served_until_shutdown() -> None:
    lines = run(SCRAPE).stdout.splitlines()

    (value,) = [line for line in lines if line.startswith("sllm_test_requests_total{")]
    assert value.endswith(" 3.0")
    assert any("sllm-test" in line for line in lines if line.startswith("target_info"))
    assert lines[-1] == "gone"


QUIET = """
import sys
import threading
from opentelemetry import trace
from sllm import telemetry

configured = telemetry.configure("sllm-test", instance_id="one")
assert configured.metrics_port is None
assert threading.active_count() == 1, threading.enumerate()
assert not trace.get_tracer("sllm").start_span("nothing").is_recording()
assert "grpc" not in sys.modules, "a process that is about to fork must not load it"
"""


def test_nothing_is_started_unless_it_is_asked_for() -> None:
    run(QUIET)


LOGS = """
import logging
import structlog
from opentelemetry import propagate
from opentelemetry import context
from sllm import telemetry

telemetry.configure("sllm-test", instance_id="one")
log = structlog.get_logger()
log.info("outside", answer=42)
trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
context.attach(propagate.extract(trace))
log.warning("inside")
logging.getLogger("library").warning("from %s", "elsewhere")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def test_log_lines_are_json_and_carry_the_trace() -> None:
    outside, inside, library, failed = [json.loads(line) for line in run(LOGS).stderr.splitlines()]

    assert (outside["event"], outside["level"], outside["answer"]) == ("outside", "info", 42)
    assert (outside["service"], outside["process"]) == ("sllm-test", "one")
    assert "trace_id" not in outside
    for line in (inside, library, failed):
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert line["span_id"] == "b7ad6b7169203331"
    assert (library["event"], library["level"]) == ("from elsewhere", "warning")
    assert "ZeroDivisionError" in failed["exception"]


LOGS_AFTERWARDS = """
import structlog
from sllm import telemetry

telemetry.configure("sllm-test", instance_id="one").shutdown()
assert not structlog.is_configured()
"""


def test_shutdown_gives_the_logs_back() -> None:
    run(LOGS_AFTERWARDS)
