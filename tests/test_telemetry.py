"""Each test runs a process of its own: OpenTelemetry's providers are set once for a process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collector import Collector

TIMEOUT = 60


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector.running() as collector:
        yield collector


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


LOGS_TO_A_FULL_DISK = """
import logging
import structlog
from sllm import telemetry

telemetry.configure("sllm-test", instance_id="one")
for number in range(1000):
    structlog.get_logger().info("told", number=number)
    logging.getLogger("library").warning("told, too")
print("alive", flush=True)
"""


def test_a_log_that_cannot_be_written_fails_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", LOGS_TO_A_FULL_DISK],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert done.stdout == "alive\n"


LOGS_AFTERWARDS = """
import structlog
from sllm import telemetry

telemetry.configure("sllm-test", instance_id="one").shutdown()
assert not structlog.is_configured()
"""


def test_shutdown_gives_the_logs_back() -> None:
    run(LOGS_AFTERWARDS)
