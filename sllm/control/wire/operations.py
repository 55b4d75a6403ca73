"""What operators ask for and are told, from and to the protocol's messages."""

import math
from collections.abc import Sequence
from typing import Final

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm import bounds, errors
from sllm.control.cluster import validation
from sllm.control.cluster.tiers import STORED_ON, Tier
from sllm.control.types.access import CallerRole, Principal
from sllm.control.types.calls import AnswerFormat
from sllm.control.types.operations import (
    DEFAULT_TTL,
    DrainProgress,
    EstimateParts,
    ExplainedNode,
    Explanation,
    Placed,
    PrefetchAsk,
    Prefetched,
)
from sllm.control.types.pins import Pin, Place
from sllm.control.types.status import Loading
from sllm.control.wire import common

DRAINED = pb.DrainNodeResponse(done=pb.DrainDone())
"""The end of a drain."""


# --- what is asked ----------------------------------------------------------------------------


def pin_place(request: pb.PinRequest) -> Place:
    """Where a Pin call wants a checkpoint to stay.

    Raises:
        errors.InvalidArgument: It names no node, or no tier that keeps checkpoints.
    """
    if not request.node_id:
        raise errors.InvalidArgument("node_id is empty; name the node to pin on")
    node_id = bounds.name(request.node_id, "node_id")
    return Place(request.deployment, bounds.one_of(request.tier, STORED_ON, "tier"), node_id)


def prefetch_ask(request: pb.PrefetchRequest, caller: Principal) -> PrefetchAsk:
    """What a Prefetch call of `caller` wants to be brought up.

    Raises:
        errors.InvalidArgument: The tier, the ttl or the dtype is out of its bounds, or neither a
            deployment nor a source is named.
        errors.InvalidSource: The source is no URL.
    """
    if not request.deployment and not request.source:
        raise errors.InvalidArgument("name a deployment or a source to prefetch")
    if request.dtype not in validation.DTYPES:
        known = validation.DTYPES[1:]
        raise errors.InvalidArgument(f"dtype {request.dtype!r} is unknown; known: {known}")
    ttl = ttl_of(request)
    return PrefetchAsk(
        deployment=request.deployment,
        source=validation.normalize_source(request.source) if request.source else "",
        dtype=request.dtype,
        tier=bounds.one_of(request.tier, STORED_ON, "tier"),
        node_id=request.node_id,
        ttl=DEFAULT_TTL if ttl is None else ttl,
        tenant=None if caller.role is CallerRole.ADMIN else caller.tenant,
    )


def unpin_tier(request: pb.UnpinRequest) -> Tier | None:
    """The tier that an Unpin call means; None: both."""
    return bounds.one_of(request.tier, STORED_ON, "tier") if request.tier else None


def ttl_of(request: pb.PinRequest | pb.PrefetchRequest) -> float | None:
    """Seconds; None where none are given.

    Raises:
        errors.InvalidArgument: They are not above zero, or too many.
    """
    return bounds.positive_duration(request.ttl, "ttl") if request.HasField("ttl") else None


def grace_of(request: pb.DrainNodeRequest) -> float:
    """Seconds that running requests have; infinite where none are given.

    Raises:
        errors.InvalidArgument: They are negative, or too many.
    """
    return bounds.duration(request.grace, "grace") if request.HasField("grace") else math.inf


# --- what is answered -------------------------------------------------------------------------


def pin_response(step: Loading | Pin) -> pb.PinResponse:
    """A step of Pin, or its end."""
    if isinstance(step, Pin):
        return pb.PinResponse(done=_pinned(step))
    return pb.PinResponse(loading=common.loading_message(step))


def unpin_response(pins: Sequence[Pin]) -> pb.UnpinResponse:
    """What was unpinned."""
    return pb.UnpinResponse(unpinned=map(_pinned, pins))


def listed_pin(pin: Pin, held: bool) -> pb.ListedPin:
    """A pin, and whether its node holds the checkpoint."""
    return pb.ListedPin(pin=_pinned(pin), held=held)


def prefetch_response(step: Placed | Loading | Prefetched) -> pb.PrefetchResponse:
    """A step of Prefetch, or its end."""
    match step:
        case Placed():
            return pb.PrefetchResponse(placed=pb.PrefetchPlaced(node_id=step.node_id))
        case Prefetched():
            return pb.PrefetchResponse(done=_done(step))
    return pb.PrefetchResponse(loading=common.loading_message(step))


def drain_response(progress: DrainProgress) -> pb.DrainNodeResponse:
    """What a node still runs."""
    return pb.DrainNodeResponse(
        progress=pb.DrainProgress(
            running_requests=progress.running_requests, instances=progress.instances
        )
    )


def explain_response(explanation: Explanation) -> pb.ExplainPlacementResponse:
    """What placement would decide, and why."""
    return pb.ExplainPlacementResponse(
        action=pb.PlacementAction.ValueType(explanation.kind),
        node_id=explanation.node_id,
        instance_id=explanation.instance_id,
        estimate=common.optional_duration(explanation.estimate),
        why=explanation.why,
        candidates=map(_candidate, explanation.candidates),
        engine=explanation.engine,
        learned=common.learned_message(explanation.learned),
        tuned=common.tuned_message(explanation.tuned),
    )


def _candidate(one: ExplainedNode) -> pb.PlacementCandidate:
    return pb.PlacementCandidate(
        node_id=one.node_id,
        from_tier=types_pb.Tier.ValueType(one.from_tier),
        ready_made=one.ready_made,
        estimate=common.optional_duration(one.estimate),
        parts=_estimate_parts(one.parts) if one.parts else None,
        victims=one.victims,
        migrated=one.migrated,
        evicted_bytes=one.evicted_bytes,
        rejected=one.rejected,
        verdict=one.verdict,
    )


def _estimate_parts(parts: EstimateParts) -> pb.StartEstimate:
    return pb.StartEstimate(
        making_room=common.duration(parts.making_room),
        queue=common.duration(parts.queue),
        transfer=common.duration(parts.transfer),
        init=common.duration(parts.init),
        distance=common.duration(parts.distance) if parts.distance else None,
        saved=common.duration(parts.saved) if parts.saved else None,
    )


def _pinned(pin: Pin) -> pb.PinnedCheckpoint:
    return pb.PinnedCheckpoint(
        deployment=pin.place.deployment,
        tier=types_pb.Tier.ValueType(pin.place.tier),
        node_id=pin.place.node_id,
        expires_at=common.optional_timestamp(pin.expires_at),
    )


def _pin(message: pb.PinnedCheckpoint) -> Pin:
    place = Place(message.deployment, Tier(message.tier), message.node_id)
    ends = message.HasField("expires_at")
    return Pin(place, common.seconds(message.expires_at) if ends else None)


def _done(done: Prefetched) -> pb.PrefetchDone:
    return pb.PrefetchDone(
        node_id=done.node_id,
        tier=types_pb.Tier.ValueType(done.tier),
        digest=done.digest,
        expires_at=common.optional_timestamp(done.expires_at),
    )


def _prefetched(done: pb.PrefetchDone) -> Prefetched:
    expires_at = common.seconds(done.expires_at)
    return Prefetched(done.node_id, Tier(done.tier), done.digest, expires_at)


# --- how answers are kept ---------------------------------------------------------------------

PINNED: Final[AnswerFormat[Pin]] = AnswerFormat(
    encode=lambda pin: _pinned(pin).SerializeToString(),
    decode=lambda kept: _pin(pb.PinnedCheckpoint.FromString(kept)),
)
UNPINNED: Final[AnswerFormat[Sequence[Pin]]] = AnswerFormat(
    encode=lambda pins: unpin_response(pins).SerializeToString(),
    decode=lambda kept: [_pin(one) for one in pb.UnpinResponse.FromString(kept).unpinned],
)
PREFETCHED: Final[AnswerFormat[Prefetched]] = AnswerFormat(
    encode=lambda done: _done(done).SerializeToString(),
    decode=lambda kept: _prefetched(pb.PrefetchDone.FromString(kept)),
)
