"""Which engine of a node a model is for, where some refuse it, and some do not work."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from sllm import errors
from sllm.node.instances import zygote_process
from sllm.node.instances.zygotes import AUTO, EngineState, Zygotes
from sllm.node.tiers.pool import Pool
from tests.node.instances import pretender
from tests.support import assert_eventually

PATIENCE = 60.0
Node = Callable[..., AbstractAsyncContextManager[Zygotes]]
ANYWHERE = Path("/")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Zygotes that behave so, by engine, once each is ready or has failed."""
    command = (sys.executable, pretender.__file__, str(tmp_path))
    monkeypatch.setattr(zygote_process, "_COMMAND", command)

    @asynccontextmanager
    async def node(**behaviours: str) -> AsyncIterator[Zygotes]:
        for engine, behaviour in behaviours.items():
            (tmp_path / engine).write_text(behaviour)
        pool, zygotes = Pool(1 << 20, 4096), Zygotes(tuple(behaviours))
        try:
            zygotes.start(pool.fd)
            await assert_eventually(lambda: zygotes.settled, PATIENCE)
            yield zygotes
        finally:
            await zygotes.close()
            pool.close()

    return node


async def test_the_first_engine_that_can_is_taken(node: Node) -> None:
    async with node(vllm="describes", transformers="describes") as zygotes:
        assert (await zygotes.describe(ANYWHERE, None, AUTO)).engine == "vllm"
    async with node(transformers="describes", vllm="describes") as zygotes:
        assert (await zygotes.describe(ANYWHERE, None, AUTO)).engine == "transformers"
        assert (await zygotes.describe(ANYWHERE, None, "vllm")).engine == "vllm"


async def test_what_one_engine_refuses_is_for_the_next(node: Node) -> None:
    async with node(vllm="refuses", transformers="describes") as zygotes:
        found = await zygotes.describe(ANYWHERE, None, AUTO)
        assert (found.engine, found.model) == ("transformers", pretender.MODEL)
        with pytest.raises(errors.UnsupportedModel, match="it is odd"):
            await zygotes.describe(ANYWHERE, None, "vllm")


async def test_what_all_engines_refuse_is_refused_once(node: Node) -> None:
    async with node(vllm="refuses", transformers="refuses") as zygotes:
        with pytest.raises(errors.UnsupportedModel, match=r"^it is odd$"):
            await zygotes.describe(ANYWHERE, None, AUTO)


async def test_an_engine_that_does_not_work_is_left_out(node: Node) -> None:
    async with node(vllm="dies before it is ready", transformers="describes") as zygotes:
        assert zygotes.states == (EngineState("transformers", ready=True),)
        assert (await zygotes.describe(ANYWHERE, None, AUTO)).engine == "transformers"
        with pytest.raises(errors.StartFailed, match="zygotes of vllm have ended"):
            await zygotes.describe(ANYWHERE, None, "vllm")


async def test_a_model_is_not_for_the_next_engine_because_a_call_has_failed(node: Node) -> None:
    """It would be a matter of luck on which of them it runs."""
    async with node(vllm="dies when it is asked", transformers="describes") as zygotes:
        with pytest.raises(errors.StartFailed):
            await zygotes.describe(ANYWHERE, None, AUTO)


async def test_an_engine_that_the_node_does_not_have_is_refused(node: Node) -> None:
    async with node(transformers="describes") as zygotes:
        with pytest.raises(errors.EngineUnavailable, match="it has transformers"):
            await zygotes.describe(ANYWHERE, None, "vllm")
        with pytest.raises(errors.EngineUnavailable):
            zygotes.of("vllm")


async def test_who_watches_is_told_of_what_becomes_ready(node: Node) -> None:
    async with node(transformers="describes") as zygotes:
        told: list[tuple[EngineState, ...]] = []
        zygotes.subscribe(lambda: told.append(zygotes.states))
        await zygotes.close()
        assert told == [(EngineState("transformers", ready=False),)]
