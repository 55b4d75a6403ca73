"""A request as a trace: one span from its being taken to its end, and one for each phase."""

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from sllm.control.types.receipts import Phase, Receipt

_tracer = trace.get_tracer("sllm")


def begin(deployment: str, request_id: str, began_ns: int) -> Span:
    """The span of a request, a child of the caller's if the call carried one."""
    return _tracer.start_span(
        "sllm.generate",
        start_time=began_ns,
        attributes={"sllm.deployment": deployment, "sllm.request_id": request_id},
    )


def end(span: Span, outcome: str, receipt: Receipt | None, began_ns: int) -> None:
    """Ends the span; `began_ns` (since the epoch) is the moment that phases are counted from."""
    span.set_attribute("sllm.outcome", outcome)
    if receipt:
        span.set_attributes(
            {
                "sllm.cold": receipt.cold,
                "sllm.node": receipt.node_id,
                "sllm.instance": receipt.instance_id,
                "sllm.time_to_first_token": receipt.time_to_first_token,
            }
        )
        _add_phases(span, receipt.phases, began_ns)
    else:
        span.set_status(Status(StatusCode.ERROR, outcome))
    span.end()


def _add_phases(span: Span, phases: Iterable[Phase], began_ns: int) -> None:
    if not span.is_recording():
        return
    parent = trace.set_span_in_context(span)
    for phase in phases:
        start = began_ns + round(phase.start * 1e9)
        name = f"sllm.phase.{phase.kind.name.lower()}"
        child = _tracer.start_span(name, context=parent, start_time=start)
        if phase.size_bytes is not None:
            child.set_attribute("sllm.size_bytes", phase.size_bytes)
        child.end(end_time=start + round(phase.duration * 1e9))
