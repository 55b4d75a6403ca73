"""Between what a generation puts out, or why it fails, and the protocol's messages."""

import sys
from array import array
from collections.abc import Sequence

import xxhash
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors
from sllm.durations import to_duration
from sllm.node.generations.cache_choice import Way
from sllm.node.generations.incoming_pages import PagesThere
from sllm.node.instances.adapter_use import AdapterSpec, named
from sllm.node.instances.page_keeping import WorkersPages
from sllm.node.instances.phases import Phase
from sllm.node.peers.types import Peer
from sllm.token_events import extend


def phase_message(phase: Phase) -> pb.Phase:
    """A phase of a receipt."""
    return pb.Phase(
        kind=pb.PhaseKind.ValueType(phase.kind),
        start=to_duration(phase.start),
        duration=to_duration(phase.duration),
        size_bytes=phase.size_bytes,
    )


def adapter_spec(message: inference_pb.AdapterSource) -> AdapterSpec:
    """The adapter that a request is for.

    Raises:
        errors.InvalidArgument: It does not say what it is, or how long it stays.
    """
    if not message.identity:
        raise errors.InvalidArgument("an adapter is named by its identity, which is empty")
    return AdapterSpec(
        deployment=bounds.name(message.deployment, "adapter.deployment"),
        source=message.source,
        dtype=message.dtype or None,
        pack=message.pack,
        identity=bounds.name(message.identity, "adapter.identity"),
        keep_alive=bounds.duration(message.keep_alive, "adapter.keep_alive"),
    )


def served_identity(instance: str, request: inference_pb.GenerateRequest) -> str:
    """Of what a request's tokens are generated with: the instance's model, and the adapter over it.

    Empty while it is not known.
    """
    adapter = named(request.adapter.identity, request.adapter.dtype)
    return f"{instance}+{adapter}" if instance and adapter else instance


def merge_tokens(parts: Sequence[inference_pb.Tokens]) -> inference_pb.Tokens:
    """One message of consecutive ones: what waits together travels together."""
    merged = inference_pb.Tokens()
    if parts:
        merged.CopyFrom(parts[0])
    for part in parts[1:]:
        extend(merged, part)
    return merged


def migration_failure(error: errors.SllmError) -> migration_pb.MigrationFailure:
    """Why a generation stays where it is."""
    return migration_pb.MigrationFailure(
        code=error.code, reason=error.reason, message=error.message
    )


def from_migration_failure(message: migration_pb.MigrationFailure) -> errors.SllmError:
    """The same, as the other node has told it."""
    return errors.make_error(message.code, message.reason, message.message)


def pages_message(
    pages: WorkersPages | None, here: Peer | None
) -> migration_pb.MigrationPages | None:
    """What the source of a migration has of KV caches. None: nothing that could be given.

    Args:
        pages: of the instance. None: it keeps none.
        here: this node, as others have its pages. None: they have none.
    """
    if pages is None or here is None or pages.layout is None:
        return None
    layout = pages.layout
    return migration_pb.MigrationPages(
        address=here.address,
        space=pages.space,
        page_tokens=layout.tokens,
        page_bytes=layout.size_bytes,
    )


def pages_there(opening: migration_pb.MigrationOpen) -> PagesThere | None:
    """As `pages_message` writes it. None: the source has none.

    Raises:
        errors.InvalidArgument: It makes no sense.
    """
    if not opening.HasField("pages"):
        return None
    pages = opening.pages
    if pages.page_tokens <= 0 or pages.page_bytes <= 0:
        raise errors.InvalidArgument("pages.page_tokens and pages.page_bytes are at least 1")
    giver = Peer(opening.from_node_id, bounds.address(pages.address, "pages.address"))
    return PagesThere(giver, pages.space, pages.page_tokens, pages.page_bytes)


def way_of(opening: migration_pb.MigrationOpen) -> Way | None:
    """How KV caches are to come. None: by what is sooner.

    Raises:
        errors.InvalidArgument: There is no such way.
    """
    return bounds.one_of(opening.way, tuple(Way), "way") if opening.way else None


def add_cache(whole: pb.CacheMove, one: pb.CacheMove, *, first: bool) -> None:
    """Adds what a round has told of how the KV cache came to what is told of all of them."""
    if first:
        whole.CopyFrom(one)
        return
    whole.page_tokens += one.page_tokens
    whole.page_bytes += one.page_bytes


def token_digest(prompt: Sequence[int], generated: Sequence[int]) -> bytes:
    """What both ends of a migration must have alike; see MigrationCutover."""
    tokens = array("i", [*prompt, *generated])
    if sys.byteorder == "big":
        tokens.byteswap()
    return xxhash.xxh3_128_digest(tokens.tobytes())
