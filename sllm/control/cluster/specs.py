"""What should exist: a name, a checkpoint's source, an engine, and how far to scale."""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from sllm import bounds
from sllm.embedding.purpose import GENERATES, PASS_TOKENS, Purpose, Task

AUTO: Final = "auto"
"""The first engine of a node that the model runs on."""
VLLM: Final = "vllm"
TRANSFORMERS: Final = "transformers"
ENGINES: Final = (VLLM, TRANSFORMERS)
PAGE_TOKENS: Final = {VLLM: 32}
"""Tokens of a page, of engines whose requests have whole pages."""
DEFAULT_ADAPTER_RANK: Final = 64
DEFAULT_KV_TOKENS: Final = 8192
"""Tokens of KV cache that an instance gets if its deployment does not say."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a deployment's model is run."""

    engine: str = TRANSFORMERS
    """AUTO only as long as it is asked for: a deployment has the one that was found."""
    dtype: str = ""
    """Name of the torch dtype to which weights are converted once. Empty: as they are stored."""
    kv_cache_tokens: int | None = None
    """Tokens that one instance's KV cache can hold. None: `DEFAULT_KV_TOKENS`, or what fits."""
    max_concurrency: int = 64
    """Requests that one instance works on at once."""
    pack: bool = False
    """Whether local safetensors are packed on each node, and not read where they lie."""
    tool_parser: str = ""
    """vLLM's, which takes calls of tools out of answers. Empty: they stay text."""
    reasoning_parser: str = ""
    """The same of thoughts."""
    tensor_parallel: int = 1
    """Devices of one node that an instance runs on together."""
    max_adapters: int = 0
    """Adapters that one instance has at once. 0: it takes none."""
    max_adapter_rank: int | None = None
    """The greatest that they may have. None: `DEFAULT_ADAPTER_RANK`."""
    expert_memory: int | None = None
    """Bytes that the experts of one instance may take, which stay on SSD otherwise. None: all
    weights are in memory."""

    @property
    def adapter_rank(self) -> int:
        """The greatest that adapters may have."""
        return self.max_adapter_rank or DEFAULT_ADAPTER_RANK

    @property
    def has_parsers(self) -> bool:
        """Whether answers are taken apart."""
        return bool(self.tool_parser or self.reasoning_parser)


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """How many instances there may be, and for how long."""

    min_replicas: int = 0
    """Instances kept even without requests."""
    max_replicas: int = 1
    keep_alive: float = 60.0
    """Seconds that an idle instance stays. 0: it ends with its last request."""
    target_concurrency: int | None = None
    """Requests that an instance should have before another one is started. None: as many as it
    works on at once."""
    learn_keep_alive: bool | None = None
    """Whether idle instances stay for less than `keep_alive` where the pauses between requests say
    that more is not worth its memory. None: as the control plane is set up."""
    target_time_per_token: float | None = None
    """Seconds between two tokens of a request, for which an instance has fewer requests at once
    than `max_concurrency` if need be. None: it has as many as that."""


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What a caller asks to exist."""

    name: str
    source: str
    """URL of the checkpoint or model directory."""
    engine: EngineConfig = EngineConfig()
    scaling: ScalingPolicy = ScalingPolicy()
    base: str = ""
    """Name of the deployment that this is an adapter over. Empty: it is a model of its own."""
    chat_template: str = ""
    """In Jinja, for conversations. Empty: the model's own."""
    image_hosts: tuple[str, ...] = ()
    """That images may be fetched from: names, "*." before a name for all below it, "*" for any that
    is public. Empty: none."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """What an adapter is, as a node read it from its files."""

    rank: int
    """The greatest of all that it adds."""
    target_modules: tuple[str, ...]
    """Last parts of the names of the layers that it adds to, in order."""
    base_identity: str
    """Of the base that it was held against."""


@dataclass(frozen=True, slots=True)
class Experts:
    """What the experts of a model take, as a node read it from their tensors' headers."""

    size_bytes: int
    """Of the model's, those of its experts."""
    memory_bytes: int
    """Memory for all of them, each in whole pages."""
    least_memory_bytes: int
    """The same of the layer that has most: a prompt may use each of its experts."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model needs from a node, as a node read it from the model's files."""

    architecture: str
    size_bytes: int
    """Of the tensors, in the dtype in which they are served."""
    context_tokens: int
    kv_bytes_per_token: int
    digest: str = ""
    """The checkpoint's. Empty until it has been imported somewhere."""
    identity: str = ""
    """Of its source: weights, and the files that shape what is made of them. Empty: not known."""
    private_bytes: int | None = None
    """Memory that an instance takes for copies of its own on the deployment's engine, as estimated.
    None: not known."""
    private_bytes_per_request: int = 0
    """What comes on top for each request that it works on at once."""
    purpose: Purpose = GENERATES
    """What it is for."""
    adapter: AdapterInfo | None = None
    """Of an adapter, whose size, digest and identity are its own."""
    experts: Experts | None = None
    """Of a mixture of experts that can stay on SSD."""

    def private_bytes_for(self, requests: int) -> int | None:
        """For copies of an instance that works on so many requests at once. None: not known."""
        if self.private_bytes is None:
            return None
        return min(self.private_bytes + requests * self.private_bytes_per_request, bounds.LARGEST)

    def with_private_of(self, other: "ModelInfo") -> "ModelInfo":
        """This model, with what the other's cache, copies and experts take on its engine."""
        return replace(
            self,
            kv_bytes_per_token=other.kv_bytes_per_token,
            private_bytes=other.private_bytes,
            private_bytes_per_request=other.private_bytes_per_request,
            experts=other.experts,
        )

    @property
    def without_private(self) -> "ModelInfo":
        """This model, of whose copies nothing is known, as they are another engine's."""
        return replace(self, private_bytes=None, private_bytes_per_request=0)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as it is stored."""

    spec: DeploymentSpec
    model: ModelInfo
    created_at: float
    """Seconds since the epoch."""

    @property
    def name(self) -> str:
        """Unique in the cluster."""
        return self.spec.name

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache that one instance should have.

        Of a model that does not generate, those of one pass, for which there has to be room.
        """
        engine = self.spec.engine
        if self.model.purpose.task is not Task.GENERATE:
            return max(PASS_TOKENS, self.model.context_tokens)
        if engine.kv_cache_tokens is None:
            return min(DEFAULT_KV_TOKENS, 16 * self.model.context_tokens)
        return engine.kv_cache_tokens - engine.kv_cache_tokens % PAGE_TOKENS.get(engine.engine, 1)

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and generation of one request may have together, at most.

        Of a model that does not generate, those of one text.
        """
        if self.model.purpose.task is not Task.GENERATE:
            return self.model.context_tokens
        return min(self.model.context_tokens, self.kv_tokens)

    def runs_as(self, config: EngineConfig) -> bool:
        """Whether what was started with `config` runs as this deployment's instances are to.

        How weights lie (`pack`) makes no difference to one that has them.
        """
        before = replace(self, spec=replace(self.spec, engine=config))
        return config == self.spec.engine or before._running == self._running

    @property
    def _running(self) -> tuple[str | int | None, ...]:
        engine = self.spec.engine
        parsers = engine.tool_parser, engine.reasoning_parser
        counts = self.kv_tokens, engine.max_concurrency, engine.max_adapters
        memory = engine.tensor_parallel, engine.expert_memory
        return engine.engine, engine.dtype, *counts, *memory, *parsers


class DeploymentState(IntEnum):
    """How far a deployment's checkpoint is; the numbers are those of the protocol."""

    PREPARING = 1
    AVAILABLE = 2
    FAILED = 3
