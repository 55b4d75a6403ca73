"""The part of an OTLP collector that takes spans and metrics, for tests."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
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
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


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

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["Collector"]:
        """A collector that serves."""
        collector = cls()
        collector.server.start()
        yield collector
        collector.server.stop(None).wait()

    def spans(self) -> list[tuple[str, Span]]:
        """All spans that came, each with the name of its service."""
        return [
            (_service(resource), span)
            for request in self.traces.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def span_names(self) -> list[str]:
        """The names of all spans that came."""
        return [span.name for _, span in self.spans()]

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


def _service(resource: ResourceSpans) -> str:
    names = {one.key: one.value.string_value for one in resource.resource.attributes}
    return names["service.name"]
