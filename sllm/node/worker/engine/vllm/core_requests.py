"""Requests as vLLM's core takes them, and why it ends them."""

import time
from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from sllm.node.worker.engine.adapters import Adapter
from sllm.node.worker.engine.interface import FinishReason
from sllm.node.worker.engine.vllm.sampler import KEY


def params_of(
    key: str, max_tokens: int, stop_token_ids: frozenset[int] = frozenset()
) -> SamplingParams:
    """How the core samples for the request of this id: not at all, but for where it ends."""
    return SamplingParams(
        temperature=0.0,  # the sampler chooses
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        ignore_eos=True,  # each request brings its own
        detokenize=False,
        extra_args={KEY: key},
    )


def core_request(
    key: str, prompt: Sequence[int], params: SamplingParams, adapter: Adapter | None
) -> EngineCoreRequest:
    """One of this id. Pages of the cache are told by the adapter beside their tokens."""
    return EngineCoreRequest(
        request_id=key,
        prompt_token_ids=list(prompt),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=adapter.name if adapter else None,
        data_parallel_rank=None,
    )


def finish_reason(output: Any) -> FinishReason | None:
    """Why a request has ended. None: it has not."""
    if not output.finished:
        return None
    reason = FinishReason.__members__.get(output.finish_reason.name)
    if reason is None:
        raise RuntimeError(f"vLLM has ended a request for another reason: {output.finish_reason}")
    return reason
