"""A worker's host whose model embeds, in this process: its weights, its failures and its end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm import errors
from sllm.embedding.asks import EmbedAsk, ScoreAsk
from sllm.node.device.interface import InPool
from sllm.node.instances.worker_messages import attach_request
from sllm.node.tiers.pool import Pool
from sllm.node.worker import wire
from sllm.node.worker.backends.transformers_backend import TransformersBackend
from sllm.node.worker.engine.encoder import Batches
from sllm.node.worker.host import ModelHost
from sllm.node.worker.preparing import EngineOptions
from sllm.node.worker.ranks import Ranks
from tests.encoders import POSITIONS, make_encoder
from tests.node.worker.staging import CHUNK_BYTES, Staged, stage
from tests.support import assert_eventually

OPTIONS = EngineOptions("transformers", kv_cache_tokens=None, max_concurrency=None)
ONE = EmbedAsk(("Once upon a time",))


def attach(staged: Staged) -> pb.AttachRequest:
    return attach_request(staged.manifest, InPool(staged.chunks, CHUNK_BYTES), kv_bytes=0)


@pytest.fixture
async def host(pool: Pool, tmp_path: Path) -> AsyncIterator[ModelHost]:
    model = make_encoder("bert", tmp_path / "model", pooling="mean_tokens")
    staged = stage(model, tmp_path / "staged", pool)
    host = ModelHost(pool.fd, TransformersBackend(), Ranks())
    prepared = await host.prepare(staged.directory, OPTIONS)
    assert prepared.model.kv_bytes_per_token > 0
    attached = await host.attach(wire.weights(attach(staged)), 0)
    assert attached.context_tokens == POSITIONS
    yield host
    await host.close()
    for chunks in staged.chunks:
        pool.free(chunks)


async def test_weights_are_used_where_they_lie(host: ModelHost) -> None:
    (answer,) = await host.running.encodings.embed(ONE)
    assert len(answer.values) == 64
    first, size = host.mapped
    found = host.parameters()
    assert len(found) > 30
    assert all(first <= one.address <= first + size - one.size_bytes for one in found)
    assert host.counters.steps == 1


async def test_it_does_not_generate(host: ModelHost) -> None:
    with pytest.raises(errors.NotServed, match="call Embed or Score"):
        _ = host.running.generations
    host.running.cancel("a generation that nobody has begun")
    host.running.cancel_all()


async def test_a_model_that_fails_ends_the_worker_and_tells_its_requests(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr(Batches, "compute", fail)
    asked = [asyncio.create_task(host.running.encodings.embed(ONE)) for _ in range(3)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert host.failed.done()
    for outcome in outcomes:
        assert isinstance(outcome, errors.WorkerDied | errors.ShuttingDown)
    assert isinstance(outcomes[0], errors.WorkerDied)
    assert "no memory is left" in outcomes[0].message
    assert await host.running.outbox.take() is None, "the agent's stream ends"


async def test_its_end_is_told_to_those_that_wait(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = EmbedAsk(tuple((7,) * 90 for _ in range(1000)))
    asked = asyncio.create_task(host.running.encodings.embed(many))
    await assert_eventually(lambda: host.counters.steps)
    await host.close()
    with pytest.raises(errors.ShuttingDown):
        await asked


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (EmbedAsk(()), errors.InvalidPrompt),
        (EmbedAsk(("",)), errors.InvalidPrompt),
        (EmbedAsk(((10**6,),)), errors.InvalidPrompt),
        (EmbedAsk(((7,) * 97,)), errors.ContextExceeded),
        (EmbedAsk(("a " * 200,)), errors.ContextExceeded),
        (EmbedAsk(("a",), dimensions=8), errors.InvalidArgument),
        (ScoreAsk((), ("a",)), errors.InvalidPrompt),
        (ScoreAsk(("a " * 200,), ("a",)), errors.ContextExceeded),
    ],
)
async def test_what_makes_no_sense_is_refused_here_too(
    host: ModelHost, ask: EmbedAsk | ScoreAsk, error: type[errors.SllmError]
) -> None:
    asked = (
        host.running.encodings.embed(ask)
        if isinstance(ask, EmbedAsk)
        else host.running.encodings.score(ask)
    )
    with pytest.raises(error):
        await asked
    assert host.counters.steps == 0
