"""vLLM's own engine core as its own programs drive it: its loader, its sampler, nothing of ours."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor


class PlainVllm:
    """A core in this process, stepped by whoever calls."""

    def __init__(self, model: Path, dtype: str, kv_bytes: int, **options: Any) -> None:
        """Loads the model from its files.

        Args:
            model: its directory, in Hugging Face format.
            dtype: name of a torch dtype.
            kv_bytes: of its KV cache.
            options: more of vLLM's `EngineArgs`.
        """
        set_num_threads = torch.set_num_threads
        args = EngineArgs(
            model=str(model),
            dtype=dtype,
            enforce_eager=True,
            skip_tokenizer_init=True,
            generation_config="vllm",
            kv_cache_memory_bytes=kv_bytes,
            **options,
        )
        config = args.create_engine_config()
        self._core: Any = EngineCore(config, Executor.get_class(config), log_stats=False)
        torch.set_num_threads = set_num_threads  # vLLM's does nothing
        self._submitted = 0

    def submit(self, prompt: Sequence[int], max_tokens: int, **sampling: Any) -> str:
        """Takes a request, greedy unless `sampling` says otherwise, and gives its id."""
        self._submitted += 1
        request_id = str(self._submitted)
        params = SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            **{"temperature": 0.0, **sampling},
        )
        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self._core.add_request(*self._core.preprocess_add_request(request))
        return request_id

    def step(self) -> dict[str, int]:
        """One step: the token that it gave each request, by its id."""
        outputs, _ = self._core.step()
        ours = outputs[0].outputs if 0 in outputs else ()
        return {one.request_id: one.new_token_ids[-1] for one in ours if one.new_token_ids}

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy tokens for all prompts, side by side."""
        tokens: dict[str, list[int]] = {self.submit(one, max_tokens): [] for one in prompts}
        while any(len(some) < max_tokens for some in tokens.values()):
            for request_id, token in self.step().items():
                tokens[request_id].append(token)
        return list(tokens.values())
