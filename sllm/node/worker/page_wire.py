"""Between a worker's own words for pages that are kept, and the protocol's messages."""

from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm.durations import to_duration
from sllm.node.worker.engine.pages import PageLayout
from sllm.node.worker.page_keeping import PageKeeping
from sllm.node.worker.page_messages import (
    Done,
    Message,
    Named,
    Offered,
    Place,
    Room,
    Wanted,
    Written,
)
from sllm.prompt_prefixes_wire import keeper_message


def message(message: Message) -> pb.KeepPagesResponse:
    """What the agent is told."""
    match message:
        case PageLayout(name, tokens, size, _):
            layout = pb.PageLayout(name=name, tokens=tokens, size_bytes=size)
            return pb.KeepPagesResponse(layout=layout)
        case Named(names, keys, pages):
            named = pb.PagesNamed(names=names, keys=keys, pages=pages)
            return pb.KeepPagesResponse(named=named)
        case Wanted():
            return pb.KeepPagesResponse(wanted=_wanted(message))
        case Offered(number, keys, seconds, request_id):
            offered = pb.PagesOffered(
                number=number, keys=keys, per_token=_duration(seconds), request_id=request_id
            )
            return pb.KeepPagesResponse(offered=offered)
        case Written(number, digests):
            return pb.KeepPagesResponse(written=pb.PagesWritten(number=number, digests=digests))
        case Done():
            done = pb.PagesDone(
                number=message.number,
                read_bytes=message.read_bytes,
                duration=to_duration(message.seconds),
                bad=message.bad,
            )
            return pb.KeepPagesResponse(done=done)


def _wanted(message: Wanted) -> pb.PagesWanted:
    return pb.PagesWanted(
        number=message.number,
        keys=message.keys,
        per_token=_duration(message.seconds_per_token),
        keeper=keeper_message(message.keeper) if message.keeper else None,
    )


def take_answer(keeping: PageKeeping, request: pb.KeepPagesRequest) -> None:
    """Passes on what the agent says."""
    match request.WhichOneof("message"):
        case "found":
            keeping.answer(request.found.number, tuple(map(_place, request.found.pages)))
        case "finish":
            keeping.finish()
        case "running":
            keeping.offer_running(request.running.request_id)
        case "room":
            places = tuple(map(_place, request.room.pages))
            keeping.answer(request.room.number, Room(places, tuple(request.room.indices)))


def _place(page: pb.KeptPage) -> Place:
    return Place(page.offset, page.digest, page.tier)


def _duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else to_duration(seconds)
