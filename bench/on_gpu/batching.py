"""The peer of decoding: transformers' own continuous batching on the same model and device."""

import gc
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from bench.on_gpu.serving import PROMPT, TOKENS


def tokens_per_second(model: Path, streams: int) -> float:
    """Of so many requests at once, after the same ones have warmed it up."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    module: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto", device_map="cuda")
    prompts = [tokenizer(f"{PROMPT}, number {index}")["input_ids"] for index in range(streams)]
    settings = GenerationConfig(do_sample=False, max_new_tokens=TOKENS, eos_token_id=-1)
    try:
        _run(module, prompts, settings)
        began = time.perf_counter()
        count = _run(module, prompts, settings)
        return count / (time.perf_counter() - began)
    finally:
        module.destroy_cached_continuous_batching_manager()
        del module
        gc.collect()
        torch.cuda.empty_cache()


def _run(module: Any, prompts: list[list[int]], settings: GenerationConfig) -> int:
    outputs = module.generate_batch(
        inputs=prompts,
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(max_requests_per_batch=len(prompts)),
        persistent_manager=True,  # the second run finds the cache made
    )
    return sum(len(output.generated_tokens) for output in outputs.values())
