"""Requests as spans: of their callers' traces, and above what the cluster does for them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind

_tracer = trace.get_tracer("sllm")


@contextmanager
def span_of(method: str, path: str, headers: Mapping[str, str], request_id: str) -> Iterator[Span]:
    """The span of a request, within which what is asked of the control plane is part of it.

    `headers` have the caller's (W3C trace context), if it has one. `path` is the route's.
    """
    with _tracer.start_as_current_span(
        f"{method} {path}",
        context=propagate.extract(headers),
        kind=SpanKind.SERVER,
        attributes={
            "http.request.method": method,
            "http.route": path,
            "sllm.request_id": request_id,
        },
    ) as span:
        yield span
