"""Traces, metrics and logs of one process: set up once, where the process begins.

Code elsewhere uses the OpenTelemetry API and structlog, whether this was called or not. Nothing is
exported, and no thread started, unless the environment or the caller asks for it. A process that
forks calls `configure` in the child: exporters, and gRPC with them, are imported only then.
"""

import io
import logging
import os
import ssl
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from structlog.typing import EventDict, Processor

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What `configure` has set up."""

    metrics_port: int | None
    """Port that serves Prometheus. None: none does."""
    exporting: bool
    """Whether anything is exported, which `shutdown` waits for."""
    _closers: ExitStack

    def shutdown(self) -> None:
        """Exports what waits, and ends what was started."""
        self._closers.close()


@dataclass(frozen=True, slots=True)
class MetricsDoor:
    """Where Prometheus is let in, and how: in the clear, or with certificates on both sides."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    certificate: Path | None = None
    """PEM. None: in the clear."""
    key: Path | None = None
    authority: Path | None = None
    """Whose certificates readers must have."""


def configure(
    service_name: str,
    *,
    instance_id: str,
    metrics_port: int | None = None,
    metrics_door: MetricsDoor | None = None,
    collects: bool = False,
) -> Telemetry:
    """Sets up this process's telemetry.

    OTLP (gRPC) exporters run if OTEL_EXPORTER_OTLP_ENDPOINT, or its variant for traces or
    metrics, is set; they read the other variables of the OpenTelemetry specification themselves.
    Logs go to stderr, as JSON lines, or in a readable form if that is a terminal.

    Args:
        service_name: `service.name` of all spans and metrics, `service` of all log lines.
        instance_id: `service.instance.id` of those, `process` of these.
        metrics_port: serves Prometheus on this port; 0 takes any that is free. None: does not.
        metrics_door: where. None: on the loopback interface, in the clear.
        collects: has prometheus_client's registry collect metrics, for a server that gives them
            on a port that it has already.

    Raises:
        OSError: The port cannot be bound.
    """
    with ExitStack() as closers:
        _configure_logs(service_name, instance_id, closers)
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return Telemetry(None, False, closers.pop_all())
        resource = Resource.create(
            {"service.name": service_name, "service.instance.id": instance_id}
        )
        if _exports("TRACES"):
            _export_traces(resource, closers)
        port = None
        if _exports("METRICS") or metrics_port is not None or collects:
            door = metrics_door or MetricsDoor()
            port = _export_metrics(resource, metrics_port, door, closers, collects=collects)
        exporting = _exports("TRACES") or _exports("METRICS")
        return Telemetry(port, exporting, closers.pop_all())


def _exports(signal: str) -> bool:
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") == "none":
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def _export_traces(resource: Resource, closers: ExitStack) -> None:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    closers.callback(provider.shutdown)
    trace.set_tracer_provider(provider)


def _export_metrics(
    resource: Resource,
    port: int | None,
    door: MetricsDoor,
    closers: ExitStack,
    *,
    collects: bool = False,
) -> int | None:
    readers: list[MetricReader] = []
    if collects:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader

        readers.append(PrometheusMetricReader())
    if _exports("METRICS"):
        readers.append(_otlp_reader())
    if port is not None:
        reader, port = _serve_prometheus(port, door, closers)
        readers.append(reader)
    provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    closers.callback(provider.shutdown)
    metrics.set_meter_provider(provider)
    return port


def _otlp_reader() -> MetricReader:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _serve_prometheus(port: int, door: MetricsDoor, closers: ExitStack) -> tuple[MetricReader, int]:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    secured: dict[str, Any] = {}
    if door.certificate and door.key and door.authority:
        secured = {
            "certfile": str(door.certificate),
            "keyfile": str(door.key),
            "client_cafile": str(door.authority),
            "client_auth_required": True,
        }
    server, thread = start_http_server(port, door.host.strip("[]"), **secured)
    if isinstance(server.socket, ssl.SSLSocket):
        _renew(server.socket, door)
    closers.callback(thread.join)
    closers.callback(server.server_close)
    closers.callback(server.shutdown)
    log.info("telemetry.metrics_served", port=server.server_port)
    return PrometheusMetricReader(), server.server_port


def _renew(listening: ssl.SSLSocket, door: MetricsDoor) -> None:
    """Has each handshake, in its reader's own thread, look whether there is a new certificate."""
    # In the thread that accepts, one that says nothing would keep all others out.
    vars(listening)["do_handshake_on_connect"] = False
    assert door.certificate
    certificate = door.certificate
    used = certificate.stat().st_mtime_ns

    def look(_socket: ssl.SSLObject, _name: str | None, context: ssl.SSLContext) -> None:
        nonlocal used
        with suppress(OSError):  # files of which one has been replaced: the next one looks again
            if (now := certificate.stat().st_mtime_ns) != used:
                # Of files that do not fit, the one that is served with would keep neither.
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, door.key)
                context.load_cert_chain(certificate, door.key)
                context.load_verify_locations(door.authority)
                used = now

    listening.context.sni_callback = look


# --- logs -------------------------------------------------------------------------------------


def _configure_logs(service_name: str, instance_id: str, closers: ExitStack) -> None:
    """One form for the lines of structlog and of libraries that use `logging`."""
    common: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _adding(service=service_name, process=instance_id),
        _add_trace,
    ]
    rendering = _rendering()
    structlog.configure(
        processors=[*common, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=_Log()),  # type: ignore[arg-type]  # is one
    )
    closers.callback(structlog.reset_defaults)
    _take_over_logging(common, rendering, closers)


class _Log(io.TextIOBase):
    """Stderr, but that a line which cannot be written, as on a full disk, is lost without an error.

    What a server does must not fail because it cannot be told.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def _take_over_logging(
    common: list[Processor], rendering: list[Processor], closers: ExitStack
) -> None:
    """Warnings and errors of libraries become lines of the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[remove_meta, *rendering], foreign_pre_chain=common
        )
    )
    logging.getLogger().addHandler(handler)
    closers.callback(logging.getLogger().removeHandler, handler)
    logging.captureWarnings(True)
    closers.callback(logging.captureWarnings, False)


def _rendering() -> list[Processor]:
    if sys.stderr.isatty():
        return [structlog.dev.ConsoleRenderer()]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _adding(**fields: str) -> Processor:
    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        return {**event, **fields}

    return add


def _add_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Adds the ids of the span that the line belongs to, if there is one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return event
    return {
        **event,
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }
