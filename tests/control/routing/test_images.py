"""Images of requests: held while their requests are under way, and not too many of them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm import errors
from sllm.control.routing import images
from sllm.control.state import tenancy
from sllm.control.state.state import State
from sllm.embedding.purpose import Purpose
from tests.control.clusters import SECONDS, Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.control.shapes import deployment


def picture() -> bytes:
    file = BytesIO()
    pillow.effect_noise((60, 60), 50).save(file, "PNG")
    return file.getvalue()


IMAGE = picture()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A control plane that holds three such images, and no more."""
    async with cluster_of(tmp_path, max_image_bytes=4 * len(IMAGE)) as cluster:
        yield cluster


def asked(count: int = 1) -> Any:
    parts = [
        types_pb2.ContentPart(image=types_pb2.Image(data=IMAGE)),
        types_pb2.ContentPart(text="What is it?"),
    ]
    message = types_pb2.ChatMessage(role="user", parts=parts)
    return {"messages": types_pb2.ChatMessages(messages=[message]), "n": count}


def at(url: str) -> Any:
    found = asked()
    found["messages"].messages[0].parts[0].image.url = url
    return found


async def test_they_are_held_within_bounds(cluster: Cluster, node: FakeNode) -> None:
    node.script.model.purpose.takes_images = True
    node.script.tokens_before_gate = 2
    node.script.amid_tokens.shut()
    await cluster.caller.deploy()
    first = cluster.caller.generate(request_id="a", **asked())
    await first.until_tokens(2)
    with pytest.raises(errors.QueueFull, match="images of requests under way have"):
        await cluster.caller.complete(**asked(3))
    second = cluster.caller.generate(request_id="b", **asked(2))
    await second.until_tokens(4)
    with pytest.raises(errors.QueueFull):
        await cluster.caller.complete(**asked())
    third = cluster.caller.generate(request_id="c")
    await third.until_tokens(2)
    node.script.amid_tokens.open()
    for stream in (first, second, third):
        await stream.end()
    assert (await cluster.caller.complete(**asked(3))).kinds[-1] == "finished"


async def test_slow_hosts_of_one_deployment_hold_up_no_other(
    cluster: Cluster, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither other deployments' images that are fetched, nor those that come as bytes."""
    monkeypatch.setattr(images, "MAX_WAITING", 9)
    came = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/slow" in head:
            came.release()
            await reader.read()  # until the other side has had enough
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(IMAGE) + IMAGE)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as site:
        url = f"http://127.0.0.1:{site.sockets[0].getsockname()[1]}"
        node.script.model.purpose.takes_images = True
        for name in ("slow", "tiny"):
            await cluster.caller.deploy(name, image_hosts=["127.0.0.1"])
        held = [cluster.caller.generate("slow", **at(f"{url}/slow")) for _ in range(9)]
        for _ in range(8):
            await asyncio.wait_for(came.acquire(), SECONDS)
        assert (await cluster.caller.complete(**at(f"{url}/x"))).kinds[-1] == "finished"
        assert (await cluster.caller.complete("slow", **asked())).kinds[-1] == "finished"
        with pytest.raises(errors.QueueFull, match="be fetched for slow"):
            await cluster.caller.complete("slow", **at(f"{url}/x"))
        for one in held:
            one.call.cancel()


async def test_one_tenant_leaves_room_for_others_to_have_theirs_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of four places two are anybody's, and each of two tenants has one of its own."""
    room, goes_on = 4, threading.Event()
    monkeypatch.setattr(images.ImageChecks, "_looked_at", lambda *_: goes_on.wait(SECONDS))
    state = State()
    seen = {
        name: deployment(f"{name}:llama", purpose=Purpose(takes_images=True))
        for name in ("acme", "zebra")
    }
    for one in seen.values():
        state.set_deployment(one)
    checks = images.ImageChecks(partial(tenancy.check_looking_share, state, room))

    def settle(name: str) -> asyncio.Task[None]:
        request = pb.GenerateRequest(deployment=seen[name].name, **asked())
        return asyncio.create_task(checks.settle(request, seen[name], fetches=False))

    held = [settle("acme") for _ in range(3)]
    with pytest.raises(errors.TenantLimit, match="kept for others") as caught:
        await settle("acme")
    assert caught.value.metadata["limit"] == "share"
    held.append(settle("zebra"))
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(*held)
    await asyncio.gather(*(settle("acme") for _ in range(3)))
    checks.close()
