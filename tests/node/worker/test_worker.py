"""Workers as the agent sees them: forked from a real zygote, called over their sockets."""

import asyncio
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serverlessllm.v1 import types_pb2
from transformers import AutoTokenizer

from sllm import errors
from sllm.node.instances.forked import Exit
from sllm.node.instances.zygote_client import Zygote
from sllm.node.worker.engine.niceness import BACKGROUND_NICENESS, may_go_behind
from tests.node.worker.clients import (
    KV_BYTES,
    WorkerClient,
    fork,
    inference_ids,
    is_idle,
    mapped_kilobytes,
    rid,
    so_far,
    warm,
)
from tests.node.worker.staging import Staged
from tests.support import assert_eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Once upon a time"


async def test_attaching_says_how_long_it_took_and_what_context_there_is(
    blank: WorkerClient, staged: Staged
) -> None:
    prepared = await blank.prepare(staged.directory)
    attached = await blank.attach(staged)
    assert prepared.duration.ToNanoseconds() > 0
    assert not prepared.HasField("warm_up"), "there is no device"
    assert attached.attach.ToNanoseconds() > 0
    assert attached.engine_init.ToNanoseconds() > 0
    assert attached.context_tokens == 512


@pytest.mark.parametrize(("tokens", "kv_bytes", "context"), [(96, KV_BYTES, 96), (0, 300_000, 97)])
async def test_the_cache_bounds_the_context(
    blank: WorkerClient, staged: Staged, tokens: int, kv_bytes: int, context: int
) -> None:
    """A token of this model takes 3072 bytes of cache."""
    await blank.prepare(staged.directory, **({"kv_cache_tokens": tokens} if tokens else {}))
    attached = await blank.attach(staged, kv_bytes)
    assert attached.context_tokens == context


async def test_a_cache_that_may_have_more_is_resized(blank: WorkerClient, staged: Staged) -> None:
    await blank.prepare(staged.directory)
    attached = await blank.attach(staged, more_kv_bytes=KV_BYTES)
    assert attached.resizes_cache
    grown = await blank.resize_cache(2 * KV_BYTES)
    assert 0 <= 2 * KV_BYTES - grown.share_bytes < 2 * 16 * 3072, "whole pages"
    assert not grown.used_bytes
    shrunk = await blank.resize_cache(0)
    assert shrunk.share_bytes == shrunk.least_bytes == 512 * 3072, "one of the longest fits"


async def test_a_cache_of_a_fixed_size_is_not_resized(blank: WorkerClient, staged: Staged) -> None:
    await blank.prepare(staged.directory)
    assert not (await blank.attach(staged)).resizes_cache
    with pytest.raises(errors.InvalidArgument, match="fixed size"):
        await blank.resize_cache(KV_BYTES)


async def test_every_parameter_lies_in_the_mapping(worker: WorkerClient) -> None:
    status = await worker.status()
    end = status.mapping_address + status.mapping_bytes
    assert len(status.parameters) > 30
    for parameter in status.parameters:
        assert status.mapping_address <= parameter.address
        assert parameter.address + parameter.size_bytes <= end


async def test_workers_of_one_model_share_its_pages(
    worker: WorkerClient, blank: WorkerClient, staged: Staged
) -> None:
    await blank.bring_up(staged)
    for one in (worker, blank):
        await one.generate(rid(), text=TEXT, max_tokens=1)
    status = await blank.status()
    resident, proportional, private = mapped_kilobytes(blank.pid, status.mapping_address)
    assert resident > 0.9 * status.mapping_bytes / 1024
    assert proportional < 0.6 * resident
    assert private == 0, "something has written into the weights"


@pytest.mark.skipif(
    not may_go_behind(), reason="all has a niceness, or none may come back: see setpriority(2)"
)
async def test_while_nobody_waits_other_processes_go_before(worker: WorkerClient) -> None:
    async def stands_behind(is_behind: bool) -> None:
        await assert_eventually(lambda: bool(behind_all(worker.pid)) is is_behind)

    back, awaited = rid(), rid()
    followed = worker.submit(back, text=TEXT, max_tokens=500, background=True)
    await worker.until(lambda: followed.tokens)
    await stands_behind(True)
    other = worker.submit(awaited, text=TEXT, max_tokens=500)
    await worker.until(lambda: other.accepted)
    assert not behind_all(worker.pid), "before it is read: its engine may have no processor"
    worker.cancel(awaited)
    await stands_behind(True)
    worker.cancel(back)
    await stands_behind(False)


def behind_all(pid: int) -> list[int]:
    """Threads of a process that others' go before."""
    threads = map(int, os.listdir(f"/proc/{pid}/task"))
    return [one for one in threads if os.getpriority(os.PRIO_PROCESS, one) == BACKGROUND_NICENESS]


async def test_of_what_nobody_waits_for_all_is_told(worker: WorkerClient) -> None:
    alone = await worker.generate(rid(), text=TEXT, max_tokens=200)
    behind = await worker.generate(rid(), text=TEXT, max_tokens=200, background=True)
    assert (behind.tokens, behind.text) == (alone.tokens, alone.text)


async def test_a_text_goes_in_and_a_text_comes_out(worker: WorkerClient, staged: Staged) -> None:
    tokenizer = AutoTokenizer.from_pretrained(staged.directory)
    found = await worker.generate(rid(), text=TEXT, max_tokens=20)
    assert found.completed is not None
    assert found.accepted is not None
    prompt = tokenizer(TEXT)["input_ids"]
    assert found.accepted.prompt_tokens == len(prompt)
    assert found.text == tokenizer.decode(found.tokens, skip_special_tokens=True)
    assert found.completed.usage.prompt_tokens == len(prompt)
    assert found.completed.usage.completion_tokens == len(found.tokens) == 20
    assert found.completed.reason == types_pb2.FINISH_REASON_LENGTH
    by_ids = await worker.generate(rid(), token_ids=inference_ids(prompt), max_tokens=20)
    assert by_ids.tokens == found.tokens


async def test_messages_are_rendered_with_the_chat_template(
    worker: WorkerClient, staged: Staged
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(staged.directory)
    message: dict[str, Any] = {"role": "user", "content": "Tell me a story."}
    rendered = tokenizer.apply_chat_template([message], add_generation_prompt=True)
    messages = types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(**message)])
    found = await worker.generate(rid(), messages=messages, max_tokens=1)
    assert found.accepted is not None
    assert found.accepted.prompt_tokens == len(rendered["input_ids"])


async def test_a_stop_string_ends_the_text_and_the_engine_stops(worker: WorkerClient) -> None:
    free = await worker.generate(rid(), text=TEXT, max_tokens=60, sampling=warm())
    stop = free.text[10:13]
    found = await worker.generate(
        rid(), text=TEXT, max_tokens=400, stop=["never", stop], sampling=warm()
    )
    assert found.completed is not None
    assert found.text == free.text[: free.text.index(stop)]
    assert found.completed.stop == stop
    assert found.completed.reason == types_pb2.FINISH_REASON_STOP
    assert found.completed.usage.completion_tokens == len(found.tokens) < 60
    await assert_eventually(lambda: is_idle(worker))


async def test_a_stop_token_ends_the_generation(worker: WorkerClient) -> None:
    free = await worker.generate(rid(), text=TEXT, max_tokens=30, sampling=warm())
    found = await worker.generate(
        rid(), text=TEXT, max_tokens=30, stop_token_ids=[free.tokens[7]], sampling=warm()
    )
    assert found.tokens == free.tokens[: free.tokens.index(free.tokens[7]) + 1]
    assert free.text.startswith(found.text)
    whole = await worker.generate(
        rid(),
        text=TEXT,
        max_tokens=30,
        stop_token_ids=[free.tokens[7]],
        include_stop=True,
        sampling=warm(),
    )
    assert whole.tokens == found.tokens
    assert len(whole.text) > len(found.text)
    assert found.completed is not None
    assert found.completed.reason == types_pb2.FINISH_REASON_STOP
    assert not found.completed.HasField("stop")


async def test_logprobs_come_with_their_tokens(worker: WorkerClient) -> None:
    found = await worker.generate(rid(), text=TEXT, max_tokens=5, logprobs=2)
    assert len(found.logprobs) == 5
    for token, logprob in zip(found.tokens, found.logprobs, strict=True):
        assert len(logprob.top) == 2
        assert logprob.top[0].token_id == token
        assert logprob.top[0].logprob == pytest.approx(logprob.logprob)


@pytest.mark.parametrize("alternatives", [0, 20])
async def test_logprobs_of_a_prompt_come_before_its_tokens(
    worker: WorkerClient, alternatives: int
) -> None:
    asked = {"prompt_logprobs": alternatives, "max_tokens": 3}
    found = await worker.generate(rid(), text=TEXT * 20, **asked)
    assert found.accepted is not None
    assert [one.token_id for one in found.prompt] == list(found.accepted.prompt_token_ids)
    assert not found.prompt[0].HasField("logprob")
    assert all(one.HasField("logprob") for one in found.prompt[1:])
    assert {len(one.top) for one in found.prompt[1:]} == {alternatives}
    assert found.tokens
    prompt = inference_ids(found.accepted.prompt_token_ids)
    told = [
        await worker.generate(rid(), token_ids=prompt, continuation=so_far(tokens), **asked)
        for tokens in ([], found.tokens[:1])
    ]
    assert [len(one.prompt) for one in told] == [len(prompt.ids), 0]


@pytest.mark.parametrize("sampled", [False, True])
async def test_a_generation_goes_on_from_any_token(worker: WorkerClient, sampled: bool) -> None:
    fields = {"max_tokens": 40, "logprobs": 2, "ignore_eos": True, "stop": ["never in it"]}
    fields["sampling"] = warm(7) if sampled else types_pb2.SamplingParams(temperature=0)
    uncut = await worker.generate(rid(), text=TEXT, **fields)
    assert uncut.accepted is not None
    prompt = inference_ids(uncut.accepted.prompt_token_ids)
    rest = [
        worker.submit(rid(), token_ids=prompt, continuation=so_far(uncut.tokens[:cut]), **fields)
        for cut in range(41)
    ]
    await worker.until(lambda: all(one.ended for one in rest))
    for cut, one in enumerate(rest):
        assert one.tokens == uncut.tokens[cut:], cut
        assert uncut.text.endswith(one.text)
        for found, expected in zip(one.logprobs, uncut.logprobs[cut:], strict=True):
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)
        assert one.completed is not None
        assert one.completed.usage.completion_tokens == 40
        assert one.completed.usage.prompt_tokens == uncut.accepted.prompt_tokens
        assert one.completed.reason == types_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("stops", [False, True])
async def test_a_generation_goes_on_within_a_character_and_within_a_stop_string(
    worker: WorkerClient, stops: bool
) -> None:
    """The text of both parts is the whole text, wherever it was cut."""
    fields = {"text": TEXT, "max_tokens": 40, "ignore_eos": True, "sampling": warm(7)}
    free = await worker.generate(rid(), **fields)
    stop = free.text[len(free.text) // 2 :][:12]
    fields["stop"] = [stop if stops else "never in it"]
    uncut = await worker.generate(rid(), **fields)
    assert uncut.completed is not None
    assert uncut.completed.stop == (stop if stops else "")
    cuts = range(1, len(uncut.tokens))
    begun = [worker.submit(rid(), **{**fields, "max_tokens": cut}) for cut in cuts]
    rest = [worker.submit(rid(), continuation=so_far(uncut.tokens[:cut]), **fields) for cut in cuts]
    await worker.until(lambda: all(one.ended for one in (*begun, *rest)))
    held = 0
    for cut, before, one in zip(cuts, begun, rest, strict=True):
        assert before.tokens + one.tokens == uncut.tokens, cut
        assert uncut.text.endswith(one.text), cut
        text = uncut.text.removesuffix(one.text)
        # What it ends with for good is given out at its end, and held back where it goes on.
        assert before.text.startswith(text), cut
        held += before.text != text
        assert one.completed is not None
        assert one.completed.stop == uncut.completed.stop
    assert held > 2, "the text of some tokens waits for that of those that follow"


async def test_a_generation_that_had_ended_only_says_so(worker: WorkerClient) -> None:
    free = await worker.generate(rid(), text=TEXT, max_tokens=30, sampling=warm())
    fields = {"text": TEXT, "max_tokens": 30, "sampling": warm()}
    by_token = await worker.generate(
        rid(), continuation=so_far(free.tokens[:8]), stop_token_ids=[free.tokens[7]], **fields
    )
    assert by_token.completed is not None
    assert by_token.completed.reason == types_pb2.FINISH_REASON_STOP
    assert not by_token.tokens
    stop = free.text[10:13]
    cut = await worker.generate(rid(), stop=[stop], **fields)
    by_text = await worker.generate(rid(), continuation=so_far(cut.tokens), stop=[stop], **fields)
    assert by_text.completed is not None
    assert by_text.completed.stop == stop
    assert not by_text.text


async def test_what_goes_on_is_checked(worker: WorkerClient) -> None:
    unknown = await worker.generate(rid(), text=TEXT, continuation=so_far([10**6]))
    assert unknown.failure is not None
    assert unknown.failure.reason == "INVALID_PROMPT"
    longer = await worker.generate(rid(), text=TEXT, continuation=so_far([1, 2]), max_tokens=1)
    assert longer.failure is not None
    assert longer.failure.reason == "INVALID_ARGUMENT"


async def test_many_requests_at_once_are_all_served(worker: WorkerClient) -> None:
    requests = [
        worker.submit(rid(), text=f"{TEXT} {n}", max_tokens=8, sampling=warm(n)) for n in range(100)
    ]
    await worker.until(lambda: all(found.ended for found in requests))
    assert all(found.completed and len(found.tokens) == 8 for found in requests)


async def test_without_max_tokens_the_context_is_the_limit(worker: WorkerClient) -> None:
    found = await worker.generate(rid(), token_ids=inference_ids(range(10, 500)), ignore_eos=True)
    assert len(found.tokens) == 512 - 490


async def test_a_cancelled_request_ends_without_a_word(worker: WorkerClient) -> None:
    before = (await worker.status()).counters
    request_id = rid()
    found = worker.submit(request_id, text=TEXT, max_tokens=400, ignore_eos=True)
    await worker.until(lambda: len(found.tokens) > 2)
    worker.cancel(request_id)
    await assert_eventually(lambda: is_idle(worker))
    after = (await worker.status()).counters
    assert after.cancelled_requests == before.cancelled_requests + 1
    assert after.generated_tokens - before.generated_tokens < 300
    assert not found.ended


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "INVALID_PROMPT"),
        ({"token_ids": types_pb2.TokenIds()}, "INVALID_PROMPT"),
        ({"token_ids": types_pb2.TokenIds(ids=[1024])}, "INVALID_PROMPT"),
        ({"token_ids": types_pb2.TokenIds(ids=[5] * 512), "max_tokens": 1}, "CONTEXT_EXCEEDED"),
        ({"text": TEXT, "max_tokens": 512}, "CONTEXT_EXCEEDED"),
        ({"text": TEXT, "max_tokens": 0}, "INVALID_ARGUMENT"),
        ({"text": TEXT, "logprobs": -1}, "INVALID_ARGUMENT"),
        ({"text": TEXT, "logprobs": 21}, "INVALID_ARGUMENT"),
        ({"text": TEXT, "prompt_logprobs": -1}, "INVALID_ARGUMENT"),
        ({"text": TEXT, "prompt_logprobs": 21}, "INVALID_ARGUMENT"),
        ({"text": TEXT, "stop": [""]}, "INVALID_ARGUMENT"),
        ({"text": TEXT, "stop": ["x"] * 17}, "INVALID_ARGUMENT"),
        (
            {"text": TEXT, "sampling": types_pb2.SamplingParams(temperature=float("nan"))},
            "INVALID_SAMPLING",
        ),
    ],
)
async def test_a_bad_request_fails_alone_with_its_reason(
    worker: WorkerClient, fields: dict[str, object], reason: str
) -> None:
    found = await worker.generate(rid(), **fields)
    assert found.failure is not None
    assert found.failure.reason == reason
    assert found.failure.code == errors.BY_REASON[reason].code
    good = await worker.generate(rid(), text=TEXT, max_tokens=1)
    assert good.completed


async def test_a_closed_stream_cancels_its_requests(blank: WorkerClient, staged: Staged) -> None:
    await blank.bring_up(staged)
    found = blank.submit(rid(), text=TEXT, max_tokens=400, ignore_eos=True)
    await blank.until(lambda: found.tokens)
    assert blank.reader is not None
    blank.reader.cancel()
    await assert_eventually(lambda: is_idle(blank))
    assert (await blank.status()).counters.cancelled_requests == 1


async def test_calls_out_of_order_are_refused(blank: WorkerClient, staged: Staged) -> None:
    with pytest.raises(errors.InvalidArgument, match="prepared"):
        await blank.attach(staged)
    await blank.prepare(staged.directory)
    with pytest.raises(errors.InvalidArgument, match="within the chunks"):
        await blank.attach(replace(staged, chunks=(staged.chunks[0][:-1],)))
    await blank.attach(staged)
    with pytest.raises(errors.InvalidArgument, match="once"):
        await blank.attach(staged)


async def test_an_engine_that_is_not_there_is_named(blank: WorkerClient, staged: Staged) -> None:
    with pytest.raises(errors.EngineUnavailable, match="transformers, not warp"):
        await blank.prepare(staged.directory, engine="warp")


async def test_a_cache_without_room_for_a_token_is_refused(
    blank: WorkerClient, staged: Staged
) -> None:
    await blank.prepare(staged.directory)
    with pytest.raises(errors.NoCapacity, match="3072"):
        await blank.attach(staged, kv_bytes=1000)


async def test_a_terminated_worker_ends_in_order(blank: WorkerClient, staged: Staged) -> None:
    await blank.bring_up(staged)
    found = blank.submit(rid(), text=TEXT, max_tokens=400, ignore_eos=True)
    await blank.until(lambda: found.tokens)
    os.kill(blank.pid, signal.SIGTERM)
    assert await asyncio.wait_for(blank.forked.exited, 10) == Exit(0)


async def test_a_collector_that_does_not_answer_holds_no_worker_up(
    zygote: Zygote, staged: Staged, tmp_path: Path
) -> None:
    traced = await fork(zygote, tmp_path / "s", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    await traced.prepare(staged.directory)
    os.kill(traced.pid, signal.SIGTERM)
    assert await asyncio.wait_for(traced.forked.exited, 10) == Exit(0)
    await traced.close()


async def test_an_engine_that_fails_fails_its_requests_and_ends_the_process(
    blank: WorkerClient, staged: Staged
) -> None:
    await blank.bring_up(staged)
    await blank.generate(rid(), text=TEXT, max_tokens=1)
    resource.prlimit(blank.pid, resource.RLIMIT_DATA, (1, 1))  # not a page more
    # One long prompt: the engine's masks want fresh pages, the loop that tells of it hardly any.
    found = blank.submit(rid(), token_ids=inference_ids([1] * 400))
    end = await asyncio.wait_for(blank.forked.exited, 30)
    assert os.waitstatus_to_exitcode(end.status) == 1
    await assert_eventually(lambda: found.failure)  # it comes by another way than the end
    assert found.failure is not None
    assert found.failure.reason == "WORKER_DIED"


async def test_a_killed_worker_is_noticed_at_once(blank: WorkerClient) -> None:
    os.kill(blank.pid, signal.SIGKILL)
    assert await asyncio.wait_for(blank.forked.exited, 10) == Exit(signal.SIGKILL)
