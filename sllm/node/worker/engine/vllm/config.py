"""How vLLM is told to run one model, as the node's books have it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from sllm.chat.images import MAX_IMAGES
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.engine.vllm.loader import LOAD_FORMAT
from sllm.node.worker.ready_made.contents import ReadyMade, Weights

PAGE_TOKENS = 32
"""Tokens in a block of the KV cache: vLLM's kernels for processors want a multiple of this."""
SEEING: Final = {
    "skip_tokenizer_init": False,  # what an image stands for in a prompt is made by it
    "limit_mm_per_prompt": {"image": MAX_IMAGES, "video": 0, "audio": 0},
    "mm_hasher_algorithm": "sha256",  # which needs no further library
    "mm_processor_cache_gb": 0,  # of its own, in no book
    "skip_mm_profiling": True,  # memory for images is bounded by their number and size
}
"""How vLLM is told to run a model that sees."""
BLIND: Final = {"skip_tokenizer_init": True, "language_model_only": True}
"""And one that does not, or is not shown any."""
_ANY_DIRECTORY = "model"
_MAX_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens of prompts and generations in one step: longer prompts take several steps."""


@dataclass(frozen=True, slots=True)
class VllmModel:
    """A model for vLLM."""

    directory: Path
    """Has `config.json`."""
    weights: Weights
    """A checkpoint's may go once the engine has started."""
    dtype: torch.dtype
    """In which the model is run."""
    context_tokens: int
    """Tokens that the model's positions allow."""
    kv_bytes_per_token: int
    """On each rank."""
    ranks: int = 1
    """Processes that run it together, each with a part of the weights and of the cache."""
    sees: bool = False
    """Whether it is shown images; the directory has what makes its inputs of them, and stays."""

    @property
    def weight_bytes(self) -> int:
        """Of all of them, in the form that is given."""
        if isinstance(self.weights, ReadyMade):
            return self.weights.nbytes
        return sum(one.nbytes for one in self.weights.values())


def step_places() -> int:
    """Tokens in whose places images are seen in one step, if one image has no more."""
    return _MAX_BATCH_TOKENS[current_platform.device_type]


def max_batch_tokens(capacity: Capacity) -> int:
    """Tokens in one step."""
    return max(_MAX_BATCH_TOKENS[current_platform.device_type], capacity.max_requests)


def engine_config(
    model: VllmModel, capacity: Capacity, sampler: type[Any], executor: type[Any]
) -> Any:
    """VLLM's configuration.

    Args:
        model: what is run.
        capacity: pages for so many tokens are allocated.
        sampler: the logits processor that chooses tokens.
        executor: what has the ranks of the model compute.
    """
    # One more page, since vLLM keeps one that nothing is written to.
    pages = capacity.kv_tokens // PAGE_TOKENS + 1
    addressed = capacity.pool_tokens // PAGE_TOKENS + 1
    args = EngineArgs(
        model=str(model.directory),
        load_format=LOAD_FORMAT,
        dtype=str(model.dtype).removeprefix("torch."),
        **(SEEING if model.sees else BLIND),
        tensor_parallel_size=model.ranks,
        distributed_executor_backend=executor,
        generation_config="vllm",  # sampling is ours
        max_model_len=min(model.context_tokens, capacity.kv_tokens // PAGE_TOKENS * PAGE_TOKENS),
        max_num_seqs=capacity.max_requests,
        max_num_batched_tokens=max_batch_tokens(capacity),
        block_size=PAGE_TOKENS,
        num_gpu_blocks_override=addressed,
        # Given, it is not found out by a rehearsal with the longest prompt.
        kv_cache_memory_bytes=pages * PAGE_TOKENS * model.kv_bytes_per_token,
        # Layers with windows would share pages with others, which then hold fewer tokens than said.
        disable_hybrid_kv_cache_manager=True,
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        async_scheduling=False,  # each step has to know the tokens of the last
        enforce_eager=current_platform.is_cpu(),  # compiling takes longer than starts may
        logits_processors=[sampler],
        seed=0,
        disable_log_stats=True,
    )
    config = args.create_engine_config()
    if model.sees:  # what reads images is made of the directory's files, more than once
        scheduler = config.scheduler_config  # however many requests there are
        scheduler.max_num_encoder_input_tokens = scheduler.encoder_cache_size = step_places()
        return config
    # Compiled kernels are found again by a digest of the configuration, and directories differ
    # among nodes. What a model's kernels depend on is in its own configuration.
    config.model_config.model = _ANY_DIRECTORY
    return config
