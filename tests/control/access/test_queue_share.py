"""The queue that all tenants share: one fills what is nobody's, and none of what is another's."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.control.access.test_tenants import shared_in


async def test_one_tenant_does_not_fill_the_queue(tmp_path: Path) -> None:
    """Of ten places five are anybody's, and each of two tenants has two and a half of its own."""
    async with shared_in(tmp_path, max_queued=10) as shared, AsyncExitStack() as open_:
        shared.node.script.before_ready.shut()
        for who in (shared.acme, shared.zebra):
            await who.deploy("llama", "file:///models/a")

        async def wait(who: sllm.AsyncClient) -> None:
            stream = await open_.enter_async_context(who.generate("llama", "x"))
            assert isinstance(await stream.receive(), sllm.Queued)

        for _ in range(7):
            await wait(shared.acme)
        with pytest.raises(errors.TenantLimit, match="kept for others") as caught:
            await wait(shared.acme)
        assert caught.value.metadata["limit"] == "share"
        assert caught.value.retry_after
        for _ in range(2):
            await wait(shared.zebra)
        await shared.admin.set_tenant("acme", sllm.TenantLimits(weight=4.0))
        await wait(shared.acme)  # four of its own, and five
        with pytest.raises(errors.QueueFull):
            await wait(shared.zebra)
        shared.node.script.before_ready.open()


async def test_a_tenant_that_is_alone_has_all_of_the_queue(tmp_path: Path) -> None:
    async with shared_in(tmp_path, max_queued=4) as shared, AsyncExitStack() as open_:
        shared.node.script.before_ready.shut()
        await shared.acme.deploy("llama", "file:///models/a")
        for _ in range(4):
            stream = await open_.enter_async_context(shared.acme.generate("llama", "x"))
            assert isinstance(await stream.receive(), sllm.Queued)
        with pytest.raises(errors.QueueFull):
            await shared.acme.complete("llama", "x")
        shared.node.script.before_ready.open()
