"""Every error goes over the wire, and comes back as what it was."""

import inspect
import re
from collections.abc import Iterator

import grpc
import pytest
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub

from sllm import errors, rpc
from tests.client.fake_control import FakeControl
from tests.client.messages import QUEUED

CLASSES = [errors.BY_REASON[reason] for reason in sorted(errors.BY_REASON)]
METADATA = {"deployment": "tiny", "path": "/models/tiny é"}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeControl]:
    server = FakeControl()
    yield server
    server.stop()


def test_every_class_without_subclasses_has_a_reason_of_its_own() -> None:
    classes = [one for one in vars(errors).values() if inspect.isclass(one)]
    leaves = {
        one for one in classes if issubclass(one, errors.SllmError) and not one.__subclasses__()
    }
    assert leaves == set(CLASSES)
    assert all("reason" in vars(leaf) for leaf in leaves)


def test_the_tree_at_the_top_of_the_file_is_that_of_the_classes() -> None:
    drawn = re.findall(r"^([│├└─ ]*)(\w+)(?: +([A-Z_]+))?(?: |$)", _tree(), re.M)
    found = [(len(lead) // 4, name, reason) for lead, name, reason in drawn]

    assert sorted(found) == sorted(_classes(errors.SllmError, 0))


def _tree() -> str:
    text = errors.__doc__ or ""
    return text[text.index("SllmError\n") :]


def _classes(cls: type[errors.SllmError], depth: int) -> Iterator[tuple[int, str, str]]:
    """Each class with its depth, and its reason if it is a leaf."""
    children = cls.__subclasses__()
    yield depth, cls.__name__, "" if children else cls.reason
    for child in children:
        yield from _classes(child, depth + 1)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.reason)
@pytest.mark.parametrize("retry_after", [None, 1.5])
async def test_as_the_status_of_a_unary_call(
    server: FakeControl, cls: type[errors.SllmError], retry_after: float | None
) -> None:
    server.reply("Cancel", cls("what to do", metadata=METADATA, retry_after=retry_after))

    async with rpc.channel(server.address) as channel:
        with pytest.raises(cls) as caught, rpc.typed_errors():
            await InferenceServiceStub(channel).Cancel(pb.CancelRequest())

    _is(caught.value, cls, retry_after)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.reason)
@pytest.mark.parametrize("retry_after", [None, 1.5])
async def test_as_the_status_of_a_stream(
    server: FakeControl, cls: type[errors.SllmError], retry_after: float | None
) -> None:
    error = cls("what to do", metadata=METADATA, retry_after=retry_after)
    server.reply("Generate", QUEUED, error)

    async with rpc.channel(server.address) as channel:
        call = InferenceServiceStub(channel).Generate(pb.GenerateRequest())
        assert await call.read() == QUEUED
        with pytest.raises(cls) as caught, rpc.typed_errors():
            await call.read()

    _is(caught.value, cls, retry_after)


def _is(caught: errors.SllmError, cls: type[errors.SllmError], retry_after: float | None) -> None:
    assert type(caught) is cls
    assert (caught.code, caught.reason) == (cls.code, cls.reason)
    assert (str(caught), caught.metadata) == ("what to do", METADATA)
    assert caught.retry_after == retry_after


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.reason)
async def test_the_code_is_canonical(server: FakeControl, cls: type[errors.SllmError]) -> None:
    server.reply("Cancel", cls("what to do"))

    async with rpc.channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceServiceStub(channel).Cancel(pb.CancelRequest())

    assert caught.value.code().name == cls.code.name


async def test_a_fault_of_the_server_does_not_tell_its_secrets(server: FakeControl) -> None:
    server.reply("Cancel")  # an empty reply makes the fake fail

    async with rpc.channel(server.address) as channel:
        with pytest.raises(errors.Internal) as caught, rpc.typed_errors():
            await InferenceServiceStub(channel).Cancel(pb.CancelRequest())

    assert "Cancel failed unexpectedly" in caught.value.message
    assert "is empty" not in caught.value.message


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, errors.Cancelled),
        (14, errors.Unreachable),
        (8, errors.NoCapacity),
        (99, errors.Internal),
    ],
)
def test_a_reason_of_a_newer_server_gets_its_codes_class(
    code: int, expected: type[errors.SllmError]
) -> None:
    assert type(errors.make_error(code, "SPAM", "what to do")) is expected
