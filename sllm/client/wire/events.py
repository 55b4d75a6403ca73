"""The messages of a stream, as the events that callers see."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.client.types import enums, events, receipts
from sllm.client.wire.values import named, seconds, tier


def event(message: inference_pb.GenerateResponse) -> events.Event | None:
    """The event of a message. None: it is of a kind that this version does not know."""
    known = _KINDS.get(message.WhichOneof("event") or "")
    return known(message) if known else None


def _queued(message: inference_pb.GenerateResponse) -> events.Queued:
    queued = message.queued
    wait = seconds(queued.estimated_wait) if queued.HasField("estimated_wait") else None
    return events.Queued(message.sequence, queued.position, wait)


def _loading(message: inference_pb.GenerateResponse) -> events.Loading:
    loading = message.loading
    found = progress(loading)
    return events.Loading(
        sequence=message.sequence,
        phase=found.phase,
        from_tier=found.from_tier,
        loaded_bytes=found.loaded_bytes,
        total_bytes=found.total_bytes,
        estimated_remaining=found.estimated_remaining,
    )


def _started(message: inference_pb.GenerateResponse) -> events.Started:
    started = message.started
    return events.Started(
        sequence=message.sequence,
        instance_id=started.instance_id,
        node_id=started.node_id,
        prompt_tokens=started.prompt_tokens,
        request_id=started.request_id,
        choice=message.choice,
    )


def _tokens(message: inference_pb.GenerateResponse) -> events.Tokens:
    tokens = message.tokens
    return events.Tokens(
        sequence=message.sequence,
        first_index=tokens.first_index,
        token_ids=tuple(tokens.token_ids),
        text=tokens.text,
        logprobs=tuple(map(_token_logprob, tokens.logprobs)),
        reasoning=tokens.reasoning,
        tool_calls=tuple(
            events.ToolCallDelta(one.index, one.id, one.name, one.arguments)
            for one in tokens.tool_calls
        ),
        choice=message.choice,
    )


def _token_logprob(logprob: pb.TokenLogprob) -> events.TokenLogprob:
    return events.TokenLogprob(logprob.logprob, _top(logprob.top))


def _prompt_logprobs(message: inference_pb.GenerateResponse) -> events.PromptLogprobs:
    tokens = tuple(
        events.PromptLogprob(
            one.token_id, one.logprob if one.HasField("logprob") else None, _top(one.top)
        )
        for one in message.prompt_logprobs.tokens
    )
    return events.PromptLogprobs(message.sequence, message.prompt_logprobs.first_index, tokens)


def _top(top: Iterable[pb.TopLogprob]) -> tuple[events.TopLogprob, ...]:
    return tuple(events.TopLogprob(one.token_id, one.logprob) for one in top)


def _migrated(message: inference_pb.GenerateResponse) -> events.Migrated:
    migrated = message.migrated
    return events.Migrated(
        sequence=message.sequence,
        from_node_id=migrated.from_node_id,
        to_node_id=migrated.to_node_id,
        to_instance_id=migrated.to_instance_id,
        pause=seconds(migrated.pause),
        reason=named(
            enums.MigrationReason, inference_pb.MigrationReason.DESCRIPTOR, migrated.reason
        ),
        choice=message.choice,
        cache=cache_move(migrated.cache) if migrated.HasField("cache") else None,
    )


def cache_move(message: pb.CacheMove) -> events.CacheMove:
    """How a KV cache has come to where its generation goes on."""
    return events.CacheMove(
        way=named(enums.MoveWay, pb.MoveWay.DESCRIPTOR, message.way),
        by_tokens=seconds(message.by_tokens) if message.HasField("by_tokens") else None,
        by_pages=seconds(message.by_pages) if message.HasField("by_pages") else None,
        page_tokens=message.page_tokens,
        page_bytes=message.page_bytes,
        took=seconds(message.took),
        why=message.why,
    )


def _choice_finished(message: inference_pb.GenerateResponse) -> events.ChoiceFinished:
    finished = message.choice_finished
    return events.ChoiceFinished(
        sequence=message.sequence,
        choice=message.choice,
        reason=_reason(finished),
        usage=_usage(finished.usage),
        receipt=receipt(finished.receipt),
        stop=_stop(finished),
    )


def _finished(message: inference_pb.GenerateResponse) -> events.Finished:
    finished = message.finished
    return events.Finished(
        sequence=message.sequence,
        reason=_reason(finished),
        usage=_usage(finished.usage),
        receipt=receipt(finished.receipt),
        stop=_stop(finished),
    )


def _reason(finished: inference_pb.Finished) -> enums.FinishReason:
    return named(enums.FinishReason, pb.FinishReason.DESCRIPTOR, finished.reason)


def _stop(finished: inference_pb.Finished) -> str | None:
    return finished.stop if finished.HasField("stop") else None


def _usage(usage: pb.Usage) -> events.Usage:
    return events.Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def receipt(receipt: pb.Receipt) -> receipts.Receipt:
    """Where the time to an answer went."""
    estimated = receipt.HasField("estimated_start")
    return receipts.Receipt(
        cold=receipt.cold,
        from_tier=tier(receipt.from_tier),
        phases=tuple(map(_phase, receipt.phases)),
        time_to_first_token=seconds(receipt.time_to_first_token),
        estimated_start=seconds(receipt.estimated_start) if estimated else None,
        actual_start=seconds(receipt.actual_start) if receipt.HasField("actual_start") else None,
        node_id=receipt.node_id,
        instance_id=receipt.instance_id,
        engine=receipt.engine,
        deployment=receipt.deployment,
        adapter=receipt.adapter,
        kept_prompt=tuple(
            receipts.KeptPrompt(stored, one.tokens)
            for one in receipt.kept_prompt
            if (stored := tier(one.tier))
        ),
    )


def _phase(phase: pb.Phase) -> receipts.Phase:
    return receipts.Phase(
        kind=named(enums.PhaseKind, pb.PhaseKind.DESCRIPTOR, phase.kind),
        start=seconds(phase.start),
        duration=seconds(phase.duration),
        size_bytes=phase.size_bytes if phase.HasField("size_bytes") else None,
    )


def progress(loading: pb.Loading) -> events.Progress:
    """How far a load is."""
    estimated = loading.HasField("estimated_remaining")
    return events.Progress(
        phase=named(enums.LoadPhase, pb.LoadPhase.DESCRIPTOR, loading.phase),
        from_tier=tier(loading.from_tier),
        loaded_bytes=loading.loaded_bytes,
        total_bytes=loading.total_bytes,
        estimated_remaining=seconds(loading.estimated_remaining) if estimated else None,
    )


_KINDS: Final[Mapping[str, Callable[[inference_pb.GenerateResponse], events.Event]]] = {
    "queued": _queued,
    "loading": _loading,
    "started": _started,
    "prompt_logprobs": _prompt_logprobs,
    "tokens": _tokens,
    "migrated": _migrated,
    "choice_finished": _choice_finished,
    "finished": _finished,
}
"""How each kind of event is made of its message."""
