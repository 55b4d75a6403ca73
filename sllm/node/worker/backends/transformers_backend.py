"""transformers' continuous batching, as workers know it."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.models.bert import modeling_bert  # noqa: F401 - imported for the children
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
from transformers.models.modernbert import modeling_modernbert  # noqa: F401
from transformers.models.opt import modeling_opt  # noqa: F401
from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
from transformers.models.xlm_roberta import modeling_xlm_roberta  # noqa: F401

from sllm.embedding.purpose import Purpose, Task
from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.names import TRANSFORMERS
from sllm.node.worker.engine.encoder import Encoder, pooling_of
from sllm.node.worker.engine.group import ALONE, Group, Rank
from sllm.node.worker.engine.interface import Capacity, Engine, EngineRequest
from sllm.node.worker.engine.transformers_engine import PAGE_TOKENS, TransformersEngine
from sllm.node.worker.messages import NO_PARSERS, ParserNames
from sllm.node.worker.model.description import Architecture, takes_paged_cache
from sllm.node.worker.model.module import ModelFiles, build_module, build_module_on_device
from sllm.node.worker.model.parsing import Parsers
from sllm.node.worker.model.parts import Parts, parts_of
from sllm.node.worker.model.ready_module import build_ready_module, make_module_ready
from sllm.node.worker.model.seeing import ImageReader
from sllm.node.worker.ready_made.contents import ReadyMade, Weights
from sllm.sampling import Sampling

_REHEARSED_LAYERS: Final = 24
_TOKEN_TIMEOUT: Final = 10.0
"""Seconds that the rehearsal's token may take."""


class LoadedModule:
    """A module over its weights."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        """See `Loaded.parameters`."""
        named: Iterable[tuple[str, torch.Tensor]] = self._module.named_parameters()
        return named

    def engine(self, capacity: Capacity) -> Engine:
        """See `Loaded.engine`."""
        return TransformersEngine(self._module, capacity)

    def read_bytes(self) -> tuple[int, ...]:
        """See `Loaded.read_bytes`."""
        return ()

    def parts(self) -> Parts:
        """See `Loaded.parts`."""
        return parts_of(self._module)

    def encoder(self, purpose: Purpose, pass_tokens: int) -> Encoder:
        """See `Loaded.encoder`."""
        return Encoder(self._module.eval(), pooling_of(purpose), pass_tokens)


class TransformersBackend:
    """See `Backend`."""

    name = TRANSFORMERS
    page_tokens = PAGE_TOKENS
    whole_pages = False
    versions: tuple[str, ...] = (torch.__version__, transformers.__version__)

    def check(self, architecture: Architecture) -> None:
        """See `Backend.check`."""
        takes_paged_cache(architecture)

    def check_ranks(self, architecture: Architecture, ranks: int) -> None:
        """See `Backend.check_ranks`."""
        if ranks > 1:
            raise UnsupportedModel(
                f"tensor_parallel is {ranks}, and transformers runs a model in one process: deploy "
                "with engine 'vllm', or with tensor_parallel 1"
            )

    def check_adapters(self, architecture: Architecture) -> None:
        """See `Backend.check_adapters`: whatever it runs has linear layers."""
        if not hasattr(PagedAttentionCache, "count_new_complete_blocks"):
            raise UnsupportedModel(
                f"transformers {transformers.__version__} does not let pages of the cache be told "
                "by adapters, which need 5.23"
            )

    @contextmanager
    def engine_over(self, model: Any, capacity: Capacity) -> Iterator[Engine]:
        """See `Backend.engine_over`."""
        yield TransformersEngine(model, capacity)

    def load(
        self, files: ModelFiles, weights: Weights, *, on_device: bool, group: Group = ALONE
    ) -> LoadedModule:
        """See `Backend.load`. Nothing is copied."""
        if isinstance(weights, ReadyMade):
            return LoadedModule(build_ready_module(files.architecture, weights))
        build = build_module_on_device if on_device else build_module
        return LoadedModule(build(files.architecture, weights))

    def follow(
        self,
        directory: Path,
        config: Any,
        weights: Weights,
        capacity: Capacity,
        pipe: Connection,
        rank: Rank,
    ) -> None:
        """See `Backend.follow`: `check_ranks` refuses such models before."""
        raise UnsupportedModel("transformers runs a model in one process")

    def make_ready(
        self, files: ModelFiles, weights: Mapping[str, torch.Tensor], group: Group = ALONE
    ) -> ReadyMade:
        """See `Backend.make_ready`. Models that only read are used as they are published."""
        if files.architecture.use.purpose.task is not Task.GENERATE:
            raise UnsupportedModel("weights of models that embed or score are not made ready")
        return make_module_ready(files.architecture, weights)

    def make_ready_part(
        self, directory: Path, config: Any, weights: Mapping[str, torch.Tensor], rank: Rank
    ) -> ReadyMade:
        """See `Backend.make_ready_part`: `check_ranks` refuses such models before."""
        raise UnsupportedModel("transformers runs a model in one process")

    def parsers(self, names: ParserNames, tokenizer: Any) -> Parsers | None:
        """See `Backend.parsers`."""
        if names != NO_PARSERS:
            raise UnsupportedModel(
                "tool_parser and reasoning_parser are vLLM's: deploy with engine 'vllm', or without"
            )
        return None

    def images(self, files: ModelFiles, dtype: str) -> ImageReader | None:
        """See `Backend.images`: `check` refuses models that see."""
        return None

    def rehearse(self) -> None:
        """See `Backend.rehearse`. Brings a model up as a worker does.

        With as many layers as models of some size have: the loader compiles a pattern for every
        name.
        """
        torch.set_num_threads(1)  # none but the engine's own is left to wait for
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=_REHEARSED_LAYERS,
            num_attention_heads=1,
        )
        weights = LlamaForCausalLM(config).state_dict()
        module = build_module(Architecture(config, LlamaForCausalLM), weights)
        engine = TransformersEngine(module, Capacity(kv_tokens=PAGE_TOKENS, max_requests=1))
        generated = threading.Event()
        engine.start(lambda step: generated.set() if step.tokens else None, lambda _: None)
        engine.submit(EngineRequest("rehearsal", (1, 2), Sampling(temperature=0.0, seed=0), 1))
        if not generated.wait(_TOKEN_TIMEOUT):
            raise RuntimeError("the engine gave no token in its rehearsal")
        engine.stop()
