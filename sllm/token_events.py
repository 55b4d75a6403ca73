"""Events of tokens that wait together, as one: wherever they wait."""

from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.durations import to_duration, to_seconds


def extend(tokens: pb.Tokens, more: pb.Tokens) -> None:
    """Adds what follows. A field that is forgotten here is lost when callers are slow."""
    tokens.token_ids.extend(more.token_ids)
    tokens.text += more.text
    tokens.logprobs.extend(more.logprobs)
    tokens.reasoning += more.reasoning
    tokens.tool_calls.extend(more.tool_calls)
    if more.HasField("duration"):
        seconds = to_seconds(tokens.duration) + to_seconds(more.duration)
        tokens.duration.CopyFrom(to_duration(seconds))
