"""What a node is told of others as it starts an instance, and what lenders are asked for."""

import math
from collections.abc import AsyncIterator

import pytest
from serverlessllm.v1 import layers_pb2
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import peer_service_pb2 as pb
from structlog.testing import capture_logs

from sllm.control.types.givers import FormGivers, Giver, Givers, Helpers
from sllm.control.wire.node_messages import start_request
from sllm.errors import InvalidArgument
from sllm.node.api import helpers, peer_service
from sllm.node.api.layers_wire import layers_wish
from sllm.node.api.wire import instance_spec
from sllm.node.peers.types import FormPeers, Lender, Peer, Peers
from sllm.node.tiers.first_use import FirstUse
from tests.control import shapes


async def messages(*all_of_them: pb.RunLayersRequest) -> AsyncIterator[pb.RunLayersRequest]:
    for one in all_of_them:
        yield one


@pytest.mark.parametrize("first", [(), (pb.RunLayersRequest(step=layers_pb2.LayerPass()),)])
async def test_a_call_that_does_not_say_which_layers_is_refused(
    first: tuple[pb.RunLayersRequest, ...],
) -> None:
    with pytest.raises(InvalidArgument):
        await peer_service.wanted_layers(messages(*first))


def start(*shares: float, address: str = "host:1") -> node_pb.StartInstanceRequest:
    peer = node_pb.Peer(node_id="n2", address=address)
    lenders = [node_pb.Lender(peer=peer, share=share) for share in shares]
    return node_pb.StartInstanceRequest(instance_id="i", deployment="m", lenders=lenders)


def test_lenders_come_with_what_is_started() -> None:
    assert instance_spec(start(0.25)).lenders == (Lender(Peer("n2", "host:1"), 0.25),)
    assert instance_spec(start()).lenders == ()


@pytest.mark.parametrize(
    ("shares", "left"),
    [
        ((0.0, 0.25), [0.25]),
        ((1.0, 0.25), [0.25]),
        ((math.nan, -0.5, 0.25), [0.25]),
        ((0.6, 0.6), []),
        ((0.01,) * 17, [0.01] * 16),
    ],
)
def test_lenders_that_make_no_sense_are_done_without(
    shares: tuple[float, ...], left: list[float]
) -> None:
    assert [one.share for one in instance_spec(start(*shares)).lenders] == left


@pytest.mark.parametrize("kind", [node_pb.StartInstanceRequest, node_pb.PromoteRequest])
def test_nodes_that_cannot_be_met_are_done_without(
    kind: type[node_pb.StartInstanceRequest] | type[node_pb.PromoteRequest],
) -> None:
    named = (("n2", "no"), ("n" * 257, "host:1"), ("n3", "host:0"), ("n4", "host:1"))
    told = [node_pb.Peer(node_id=node_id, address=address) for node_id, address in named]
    peers = node_pb.Peers(digest="a" * 32, peers=told)
    assert helpers.peers(kind(peers=peers)) == Peers((Peer("n4", "host:1"),), "a" * 32)
    assert helpers.peers(kind()) is None


def test_what_is_left_out_is_logged_with_what_it_was() -> None:
    with capture_logs() as logs:
        instance_spec(start(0.5, address="no"))
    (entry,) = logs
    assert (entry["event"], entry["of"]) == ("node.helpers_left_out", "lenders")
    assert '"n2"' in entry["helper"]
    assert "host:port" in entry["problem"]


def test_layers_are_asked_for_by_their_numbers() -> None:
    wanted = pb.LayersWanted(digest="d", layers=layers_pb2.LayerRange(first=2, count=3))
    assert layers_wish(wanted).layers == range(2, 5)
    assert layers_wish(wanted).first_use is None
    wanted.first_use.tensors.extend([1, 0])
    wanted.first_use.at_once = 1
    assert layers_wish(wanted).first_use == FirstUse((1, 0), 1)


@pytest.mark.parametrize(
    ("digest", "first", "count"), [("", 0, 1), ("d", 0, 0), ("d", -1, 1), ("d", 0, 1 << 20)]
)
def test_what_is_no_range_of_layers_is_refused(digest: str, first: int, count: int) -> None:
    layers = layers_pb2.LayerRange(first=first, count=count)
    with pytest.raises(InvalidArgument):
        layers_wish(pb.LayersWanted(digest=digest, layers=layers))


def with_forms(*named: tuple[str, str], count: int = 1) -> node_pb.StartInstanceRequest:
    peer = node_pb.Peer(node_id="n2", address="host:1")
    peers = [node_pb.Peers(digest=digest, peers=[peer] * count) for _, digest in named]
    pairs = zip(named, peers, strict=True)
    forms = [node_pb.FormPeers(form=form, peers=peers) for (form, _), peers in pairs]
    return node_pb.StartInstanceRequest(instance_id="i", deployment="m", forms=forms)


def test_who_has_made_weights_ready_comes_with_what_is_started() -> None:
    told = Helpers(
        forms=(FormGivers("vllm-1", Givers("a" * 32, (Giver("n2", "host:1"),))),),
    )
    request = start_request(shapes.deployment("tiny"), shapes.instance("i", "tiny"), told)
    assert instance_spec(request).forms == (
        FormPeers("vllm-1", Peers((Peer("n2", "host:1"),), "a" * 32)),
    )


WHOLE = ("vllm-1", "a" * 32)


@pytest.mark.parametrize(
    ("request_", "forms", "peers"),
    [
        (with_forms(("", "a" * 32), WHOLE), 1, 1),
        (with_forms(WHOLE, ("vllm-1", "")), 1, 1),
        (with_forms(WHOLE, ("vllm-1", "../" + "a" * 29)), 1, 1),
        (with_forms(*[WHOLE] * 17), 16, 1),
        (with_forms(WHOLE, count=257), 1, 256),
    ],
)
def test_forms_that_make_no_sense_are_left_out_and_no_more(
    request_: node_pb.StartInstanceRequest, forms: int, peers: int
) -> None:
    found = instance_spec(request_).forms
    expected = FormPeers("vllm-1", Peers((Peer("n2", "host:1"),) * peers, "a" * 32))
    assert found == (expected,) * forms
