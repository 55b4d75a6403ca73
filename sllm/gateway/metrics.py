"""What a gateway measures, on the global meter."""

from opentelemetry import metrics

_meter = metrics.get_meter("sllm")

requests = _meter.create_counter(
    "sllm.gateway.requests",
    unit="{request}",
    description="Requests that have been answered, by route and status; 499: the caller left.",
)
under_way = _meter.create_up_down_counter(
    "sllm.gateway.requests.under_way", unit="{request}", description="Requests not answered yet."
)
seconds = _meter.create_histogram(
    "sllm.gateway.request.duration", unit="s", description="From a request's head to its end."
)
first_token = _meter.create_histogram(
    "sllm.gateway.time_to_first_token",
    unit="s",
    description="From a request's head to the first token of its answer.",
)
tokens = _meter.create_counter(
    "sllm.gateway.tokens", unit="{token}", description="Tokens relayed to callers."
)
