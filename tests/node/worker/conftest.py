"""What tests of workers share: models, a pool, and the zygote that workers are forked from."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from make_models import make_model

from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.pool import Pool
from tests.node.worker.clients import WorkerClient, fork
from tests.node.worker.staging import CHUNK_BYTES, Staged, stage

FAMILIES = ("tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of small random models, one of each family."""
    directory = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_model(family, directory / family)
    return directory


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(32 << 20, CHUNK_BYTES)


@pytest.fixture(scope="module")
def staged(models: Path, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return stage(models / "tiny-gpt2", tmp_path_factory.mktemp("staged") / "gpt2", pool)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def zygote(pool: Pool) -> AsyncIterator[Zygote]:
    zygote = Zygote("transformers")
    with pytest.MonkeyPatch.context() as patch:
        # Larger pieces of memory are asked of the kernel, which can be told to refuse them, and
        # what is free is given back to it.
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(64 * 1024))
        patch.setenv("MALLOC_TRIM_THRESHOLD_", str(64 * 1024))
        zygote.start(pool.fd)
    yield zygote
    await zygote.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def worker(
    zygote: Zygote, staged: Staged, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerClient]:
    """One that serves tiny-gpt2 to all tests that leave it alive."""
    worker = await fork(zygote, tmp_path_factory.mktemp("run") / "shared.sock")
    await worker.bring_up(staged)
    yield worker
    await worker.close()


@pytest_asyncio.fixture(loop_scope="module")
async def blank(zygote: Zygote, tmp_path: Path) -> AsyncIterator[WorkerClient]:
    """A worker without a model."""
    worker = await fork(zygote, tmp_path / "blank.sock")
    yield worker
    await worker.close()
    if not worker.forked.exited.done():
        os.kill(worker.pid, signal.SIGKILL)
        await asyncio.wait_for(worker.forked.exited, 10)
