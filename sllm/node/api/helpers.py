"""Other nodes that may help with what is ordered, from the protocol's messages.

What is ordered is done without them as well, only later. So one of whom nothing can be made is left
out and logged, and the order is carried out all the same.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import structlog
from serverlessllm.v1 import node_service_pb2 as pb

from sllm import bounds, errors
from sllm.checkpoint.format.manifest import is_digest
from sllm.node.peers.types import FormPeers, Lender, Peer, Peers

log = structlog.get_logger()

_MOST_LENDERS: Final = 16
_MOST_FORMS: Final = 16
_MOST_PEERS: Final = 256
"""Of one checkpoint, that a node is told of."""
_SHOWN: Final = 200
"""Characters of what is left out, in the log."""

Message = TypeVar("Message")
Helper = TypeVar("Helper")


def peers(request: pb.StartInstanceRequest | pb.PromoteRequest) -> Peers | None:
    """Other nodes to have a checkpoint from."""
    return _peers(request.peers) if request.HasField("peers") else None


def lenders(request: pb.StartInstanceRequest) -> tuple[Lender, ...]:
    """Those that compute layers meanwhile; none, if they are to have all of them."""
    found = _usable(request.lenders, _MOST_LENDERS, _lender, "lenders")
    if sum(one.share for one in found) < 1:
        return found
    log.warning("node.helpers_left_out", of="lenders", problem="they leave nothing for this node")
    return ()


def forms(request: pb.StartInstanceRequest) -> tuple[FormPeers, ...]:
    """Those that hold the checkpoint as it was made ready."""
    return _usable(request.forms, _MOST_FORMS, _form, "forms")


def _lender(message: pb.Lender) -> Lender:
    if not 0 < message.share < 1:
        raise errors.InvalidArgument(f"a share of {message.share:g}: above 0, and below 1")
    return Lender(_peer(message.peer), message.share)


def _form(message: pb.FormPeers) -> FormPeers:
    if not message.form or not is_digest(message.peers.digest):
        raise errors.InvalidArgument("it has a name, and the digest of what was made")
    return FormPeers(message.form, _peers(message.peers))


def _peers(message: pb.Peers) -> Peers:
    return Peers(_usable(message.peers, _MOST_PEERS, _peer, "peers"), message.digest)


def _peer(message: pb.Peer) -> Peer:
    return Peer(
        bounds.name(message.node_id, "node_id"),
        bounds.address(message.address, "address"),
        message.fellow,
    )


def _usable(
    messages: Iterable[Message], most: int, parse: Callable[[Message], Helper], of: str
) -> tuple[Helper, ...]:
    """The first of them, as far as something can be made of them."""
    return tuple(_parsed(list(messages)[:most], parse, of))


def _parsed(
    messages: Iterable[Message], parse: Callable[[Message], Helper], of: str
) -> Iterator[Helper]:
    for message in messages:
        try:
            yield parse(message)
        except errors.InvalidArgument as error:
            shown = str(message)[:_SHOWN]
            log.warning("node.helpers_left_out", of=of, helper=shown, problem=error.message)
