"""What a node is told of others as it starts an instance, and what lenders are asked for."""

from collections.abc import AsyncIterator

import pytest
from serverlessllm.v1 import layers_pb2
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import peer_service_pb2 as pb

from sllm.control.types.givers import FormGivers, Giver, Givers, Helpers
from sllm.control.wire.node_messages import start_request
from sllm.errors import InvalidArgument
from sllm.node.api import peer_service
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
    "wrong",
    [
        start(0.0),
        start(1.0),
        start(-0.5),
        start(0.6, 0.6),
        start(0.5, address="no"),
        start(*[0.01] * 17),
    ],
)
def test_lenders_that_make_no_sense_are_refused(wrong: node_pb.StartInstanceRequest) -> None:
    with pytest.raises(InvalidArgument):
        instance_spec(wrong)


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


@pytest.mark.parametrize(
    "wrong",
    [
        with_forms(("", "a" * 32)),
        with_forms(("vllm-1", "")),
        with_forms(("vllm-1", "../" + "a" * 29)),
        with_forms(*[("vllm-1", "a" * 32)] * 17),
        with_forms(("vllm-1", "a" * 32), count=257),
    ],
)
def test_forms_that_make_no_sense_are_refused(wrong: node_pb.StartInstanceRequest) -> None:
    with pytest.raises(InvalidArgument):
        instance_spec(wrong)
