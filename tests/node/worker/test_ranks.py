"""One model in several processes on vLLM: the same tokens, and one end for all of them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from serverlessllm.v1 import worker_service_pb2 as worker_pb

from sllm import errors
from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.node.instances.forked import Exit
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.pool import Pool
from tests import etcd
from tests.node.worker.clients import GREEDY, WorkerClient, fork, inference_ids, rid, so_far, warm
from tests.node.worker.engines import needs_vllm
from tests.node.worker.staging import Staged, stage, stage_packed
from tests.support import assert_eventually

pytestmark = [
    needs_vllm,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]
PROMPTS = [tuple(range(3, 3 + count)) for count in (1, 5, 40, 90)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def vllm_zygote(pool: Pool) -> AsyncIterator[Zygote]:
    zygote = Zygote("vllm")
    zygote.start(pool.fd)
    yield zygote
    await zygote.close()


@pytest.fixture(scope="module")
def llama(models: Path, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    return stage(models / "tiny-llama", tmp_path_factory.mktemp("staged") / "llama", pool)


async def _tokens(worker: WorkerClient) -> list[list[int]]:
    found = [
        worker.submit(rid(), token_ids=inference_ids(prompt), max_tokens=24, sampling=sampling)
        for prompt in PROMPTS
        for sampling in (GREEDY, warm())
    ]
    await worker.until(lambda: all(one.ended for one in found))
    assert not any(one.failure for one in found), found
    return [one.tokens for one in found]


@pytest_asyncio.fixture(loop_scope="module")
async def two(
    vllm_zygote: Zygote, llama: Staged, tmp_path: Path
) -> AsyncIterator[tuple[WorkerClient, int]]:
    """A worker of two processes, and the id of the other one."""
    worker = await fork(vllm_zygote, tmp_path / "two.sock", ranks=2)
    prepared = await worker.prepare(llama.directory, engine="vllm", tensor_parallel=2)
    (other,) = prepared.rank_pids
    yield worker, other
    await worker.close()


@pytest.mark.parametrize(
    ("family", "counts"),
    [("tiny-llama", (2, 4)), ("tiny-qwen2", (2,)), ("tiny-opt", (2,)), ("tiny-gpt2", (2,))],
)
async def test_so_many_processes_give_the_tokens_of_one_and_read_their_parts(
    vllm_zygote: Zygote,
    models: Path,
    pool: Pool,
    tmp_path: Path,
    family: str,
    counts: tuple[int, ...],
) -> None:
    staged, tokens = stage(models / family, tmp_path / family, pool), {}
    for ranks in (1, *counts):
        worker = await fork(vllm_zygote, tmp_path / f"{ranks}.sock", ranks=ranks)
        attached = await worker.bring_up(staged, engine="vllm", tensor_parallel=ranks)
        tokens[ranks] = await _tokens(worker)
        await worker.close()
        ratios = [one / staged.size_bytes for one in attached.rank_read_bytes]
        assert len(ratios) == ranks
        assert all(1 / ranks <= ratio <= 1.1 / ranks for ratio in ratios), ratios
    assert all(tokens[ranks] == tokens[1] for ranks in counts)


@pytest.mark.parametrize(
    ("family", "dtype", "before"),
    [
        ("tiny-llama", None, 1),
        ("tiny-opt", None, 1),
        # Of which nothing is packed: they are only put together. Sums of parts round otherwise.
        ("tiny-llama", "float16", 2),
    ],
)
async def test_weights_that_were_made_ready_for_ranks_give_the_same_tokens_and_stay_where_they_are(
    vllm_zygote: Zygote,
    models: Path,
    pool: Pool,
    tmp_path: Path,
    family: str,
    dtype: str | None,
    before: int,
) -> None:
    staged, directory = stage(models / family, tmp_path / family, pool, dtype), tmp_path / "made"
    maker = await fork(vllm_zygote, tmp_path / "maker.sock", ranks=2)
    await maker.prepare(staged.directory, engine="vllm", tensor_parallel=2)
    await maker.make_ready(staged, directory, WeightForm("vllm:tp=2-1", "vllm", 2))
    await maker.close()
    ready, tokens = stage_packed(directory, read_manifest(directory), pool), []
    assert not await asyncio.to_thread((tmp_path / "made.rank-1").exists)
    for name, ranks, weights in (("published", before, staged), ("ready", 2, ready)):
        worker = await fork(vllm_zygote, tmp_path / f"{name}.sock", ranks=ranks)
        await worker.prepare(staged.directory, engine="vllm", tensor_parallel=ranks)
        attached = await worker.attach_and_run(weights, ready=weights is ready)
        tokens.append(await _tokens(worker))
        await worker.close()
    assert attached.rank_read_bytes == [0, 0]
    assert tokens[0] == tokens[1]


async def test_prompts_are_scored_by_all_processes_together(
    vllm_zygote: Zygote, llama: Staged, two: tuple[WorkerClient, int], tmp_path: Path
) -> None:
    one = await fork(vllm_zygote, tmp_path / "one.sock")
    await one.bring_up(llama, engine="vllm")
    await two[0].attach_and_run(llama)
    asked = {"token_ids": inference_ids(PROMPTS[-1]), "max_tokens": 2, "prompt_logprobs": 2}
    (alone, together) = [await worker.generate(rid(), **asked) for worker in (one, two[0])]
    assert len(together.prompt) == len(PROMPTS[-1])
    for left, right in zip(alone.prompt, together.prompt, strict=True):
        assert right.logprob == pytest.approx(left.logprob, abs=1e-4)
    assert together.tokens == alone.tokens
    await one.close()


async def test_a_cancelled_prompt_leaves_the_others_going(
    llama: Staged, two: tuple[WorkerClient, int]
) -> None:
    """What the first rank does not want any more, all ranks compute to its end all the same."""
    worker, _ = two
    await worker.attach_and_run(llama)
    for _ in range(20):
        cancelled = rid()
        worker.submit(
            cancelled, token_ids=inference_ids(PROMPTS[-1]), max_tokens=200, prompt_logprobs=1
        )
        going = worker.submit(rid(), token_ids=inference_ids(PROMPTS[1]), max_tokens=4)
        worker.cancel(cancelled)
        await worker.until(lambda one=going: one.ended)
        assert going.completed, going.failure


async def test_generations_go_on_on_another_number_of_processes(
    vllm_zygote: Zygote, llama: Staged, two: tuple[WorkerClient, int], tmp_path: Path
) -> None:
    one = await fork(vllm_zygote, tmp_path / "one.sock")
    await one.bring_up(llama, engine="vllm")
    await two[0].attach_and_run(llama)
    asked = {"token_ids": inference_ids(PROMPTS[2]), "max_tokens": 24, "sampling": warm()}
    whole = await one.generate(rid(), **asked)
    for worker in (one, two[0]):
        rest = await worker.generate(rid(), **asked, continuation=so_far(whole.tokens[:9]))
        assert rest.tokens == whole.tokens[9:]
    await one.close()


@pytest.mark.parametrize("killed", ["first", "other"])
async def test_the_end_of_one_process_is_that_of_all(
    vllm_zygote: Zygote, llama: Staged, two: tuple[WorkerClient, int], killed: str
) -> None:
    """Requests are told which one it was; nothing stays behind, in /dev/shm and /tmp neither."""
    worker, other = two
    await worker.attach_and_run(llama)
    followed = worker.submit(rid(), token_ids=inference_ids(PROMPTS[0]), max_tokens=480)
    await worker.until(lambda: len(followed.tokens) > 3)
    os.kill(worker.pid if killed == "first" else other, signal.SIGKILL)
    if killed == "other":
        await worker.until(lambda: followed.ended)
        assert followed.failure
        assert followed.failure.reason == "WORKER_DIED"
        assert f"rank 1 of the 2 that run the model (process {other}) was killed by SIGKILL" in (
            followed.failure.message
        )
    await asyncio.wait_for(worker.forked.exited, 20)
    await assert_eventually(lambda: not _exists(worker.pid) and not _exists(other))


async def test_who_has_ended_by_itself_is_told_and_not_who_noticed(
    vllm_zygote: Zygote, llama: Staged, tmp_path: Path
) -> None:
    worker = await fork(vllm_zygote, tmp_path / "four.sock", ranks=4)
    prepared = await worker.prepare(llama.directory, engine="vllm", tensor_parallel=4)
    await worker.attach_and_run(llama)
    followed = worker.submit(rid(), token_ids=inference_ids(PROMPTS[0]), max_tokens=480)
    await worker.until(lambda: len(followed.tokens) > 3)
    os.kill(prepared.rank_pids[1], signal.SIGKILL)
    await worker.until(lambda: followed.ended)
    assert followed.failure
    assert "rank 2 of the 4" in followed.failure.message
    assert "killed by SIGKILL" in followed.failure.message
    await asyncio.wait_for(worker.forked.exited, 20)
    await assert_eventually(lambda: not any(map(_exists, prepared.rank_pids)))
    await worker.close()


async def test_a_process_that_dies_before_the_weights_come_fails_the_start(
    llama: Staged, two: tuple[WorkerClient, int]
) -> None:
    worker, other = two
    os.kill(other, signal.SIGKILL)
    with pytest.raises(errors.SllmError):
        await worker.attach(llama)
    await asyncio.wait_for(worker.forked.exited, 20)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
async def test_who_ends_while_weights_are_taken_is_told_and_the_model_not_blamed(
    vllm_zygote: Zygote, llama: Staged, tmp_path: Path, delay: float
) -> None:
    """Wherever it is just then: from where it stands still, it comes to no answer."""
    worker = await fork(vllm_zygote, tmp_path / "four.sock", ranks=4)
    prepared = await worker.prepare(llama.directory, engine="vllm", tensor_parallel=4)
    victim = prepared.rank_pids[1]
    if not delay:
        os.kill(victim, signal.SIGSTOP)
    attaching = asyncio.create_task(worker.attach(llama))
    await asyncio.sleep(delay or 0.1)
    os.kill(victim, signal.SIGKILL)
    (ended,) = await asyncio.gather(attaching, return_exceptions=True)
    if not (delay and isinstance(ended, worker_pb.AttachResponse)):  # which was faster
        assert isinstance(ended, errors.WorkerDied), ended
        assert f"rank 2 of the 4 that run the model (process {victim}) was killed" in str(ended)
    await asyncio.wait_for(worker.forked.exited, 20)
    await assert_eventually(lambda: not any(map(_exists, prepared.rank_pids)))
    await worker.close()


async def test_processes_that_stand_still_are_ended_in_the_time_of_one(
    vllm_zygote: Zygote, llama: Staged, tmp_path: Path
) -> None:
    """The kernel would end a worker that waits for one after the other."""
    worker = await fork(vllm_zygote, tmp_path / "four.sock", ranks=4)
    attached = await worker.bring_up(llama, engine="vllm", tensor_parallel=4)
    assert len(attached.rank_read_bytes) == 4
    for process in psutil.Process(worker.pid).children():
        process.suspend()
    os.kill(worker.pid, signal.SIGTERM)
    assert await asyncio.wait_for(worker.forked.exited, 20) == Exit(0)
    await worker.close()


async def test_several_processes_take_no_adapters(
    llama: Staged, two: tuple[WorkerClient, int]
) -> None:
    with pytest.raises(errors.InvalidArgument, match="2 processes run takes no adapters"):
        await two[0].prepare(llama.directory, engine="vllm", tensor_parallel=2, max_adapters=1)


async def test_processes_end_with_their_worker(
    llama: Staged, two: tuple[WorkerClient, int]
) -> None:
    """Also those that never got weights."""
    worker, other = two
    os.kill(worker.pid, signal.SIGTERM)
    await asyncio.wait_for(worker.forked.exited, 20)
    await assert_eventually(lambda: not _exists(other))


async def test_nothing_is_left_where_others_would_find_it(
    llama: Staged, two: tuple[WorkerClient, int]
) -> None:
    before = _left_behind()
    worker, other = two
    await worker.attach_and_run(llama)
    assert _left_behind() <= before, "there is a name that a killed process would leave behind"
    os.kill(other, signal.SIGKILL)
    await asyncio.wait_for(worker.forked.exited, 20)
    assert _left_behind() <= before


async def test_weights_that_are_not_the_models_are_refused_by_all(
    vllm_zygote: Zygote, models: Path, llama: Staged, two: tuple[WorkerClient, int]
) -> None:
    lacking = [one for one in llama.manifest.tensors if "layers.2.mlp" not in one.name]
    broken = replace(llama, manifest=replace(llama.manifest, tensors=tuple(lacking)))
    with pytest.raises(errors.UnsupportedModel, match="lacks"):
        await two[0].attach(broken)


@pytest.mark.parametrize(("ranks", "what"), [(3, "4 attention heads"), (8, "4 attention heads")])
async def test_heads_that_cannot_be_divided_are_refused(
    vllm_zygote: Zygote, llama: Staged, ranks: int, what: str
) -> None:
    with pytest.raises(errors.UnsupportedModel, match=f"tensor_parallel is {ranks}.*{what}"):
        await vllm_zygote.describe(llama.directory, None, ranks=ranks)


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _left_behind() -> set[str]:
    """Names in shared memory and of vLLM's files, but for those of other tests' etcd."""
    found = {*Path("/dev/shm").iterdir(), *Path("/tmp").glob("*vllm*")}
    return {str(path) for path in found if not path.name.startswith(etcd.PREFIX)}
