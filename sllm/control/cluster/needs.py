"""What a deployment needs of a node."""

from dataclasses import dataclass
from typing import Final

from sllm import bounds
from sllm.checkpoint.format.form import form_label
from sllm.control.cluster.specs import TRANSFORMERS, Deployment, ModelInfo
from sllm.embedding.purpose import Task

LEAST_KV_TOKENS: Final = 512
"""A node is too small if its whole KV budget holds fewer tokens than this and the context."""

_LAYERED: Final = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM"})
"""Architectures of which nodes compute layers for one another."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What has to be brought to a node."""

    source: str
    size_bytes: int
    digest: str = ""
    """Empty until it has been imported somewhere."""

    @property
    def key(self) -> str:
        """Names it: the digest, or the source while there is none."""
        return self.digest or self.source


@dataclass(frozen=True, eq=False)
class Need:
    """What a deployment needs of a node. Made once per deployment and compared by identity."""

    deployment: str
    checkpoint: Checkpoint
    kv_bytes: int
    """KV cache that an instance should have; it gets less on a node that has less."""
    least_kv_bytes: int
    """KV cache without which a node is too small."""
    max_concurrency: int = 64
    engine: str = TRANSFORMERS
    """Empty: whichever a node has."""
    private_bytes: int | None = None
    """Memory that an instance takes for copies of its own, where weights are not on devices, as
    estimated. None: not known."""
    tensor_parallel: int = 1
    """Devices that an instance runs on together."""
    expert_memory: int | None = None
    """Bytes of an instance's experts in memory, where others stay on SSD. None: all weights are in
    the pool, or on a device."""
    resident_bytes: int = 0
    """Of a checkpoint whose experts stay on SSD, all else: an instance reads it when it starts.
    Like its experts it is in memory of its own, and counts among `private_bytes`."""
    own_weights_bytes: int = 0
    """Weights that each instance has in memory of its own, at most: of a checkpoint whose experts
    stay on SSD all else, and the experts that `expert_memory` has room for."""
    made_for: str = ""
    """What the weights were made ready for that a start on one node takes. Empty: as published."""
    over_ready: bool = False
    """Whether `private_bytes` are those of an instance over such weights, as measured there."""
    layered: bool = False
    """Whether other nodes can compute some of its layers for an instance; see
    `sllm/node/worker/layers`."""

    @property
    def on_disk(self) -> bool:
        """Whether experts stay on SSD."""
        return self.expert_memory is not None

    @property
    def pool_bytes(self) -> int:
        """What weights take of the pool, or of a device."""
        return 0 if self.on_disk else self.checkpoint.size_bytes

    @property
    def weights_bytes(self) -> int:
        """Memory that an instance's weights take, wherever it is."""
        return self.pool_bytes or self.private_bytes or 0

    @property
    def form_label(self) -> str:
        """What weights would have been made ready for."""
        return form_label(self.engine, self.tensor_parallel)


def need_of(deployment: Deployment) -> Need:
    """What an instance of `deployment` needs."""
    model, spec = deployment.model, deployment.spec
    checkpoint = Checkpoint(spec.source, model.size_bytes, model.digest)
    if spec.base:  # it is brought to nodes, and instances of its base are what is started
        return Need(spec.name, checkpoint, kv_bytes=0, least_kv_bytes=0, engine="")
    least_tokens = min(deployment.kv_tokens, model.context_tokens)
    if model.purpose.task is Task.GENERATE:  # others cannot be given less than one text takes
        least_tokens = min(least_tokens, LEAST_KV_TOKENS)
    return Need(
        deployment=spec.name,
        checkpoint=checkpoint,
        kv_bytes=deployment.kv_tokens * model.kv_bytes_per_token,
        least_kv_bytes=least_tokens * model.kv_bytes_per_token,
        max_concurrency=spec.engine.max_concurrency,
        engine=spec.engine.engine,
        private_bytes=_private_bytes(deployment),
        tensor_parallel=spec.engine.tensor_parallel,
        expert_memory=spec.engine.expert_memory,
        resident_bytes=_resident_bytes(model),
        own_weights_bytes=_own_weights_bytes(deployment),
        layered=_is_layered(deployment),
    )


def _is_layered(deployment: Deployment) -> bool:
    """Others have the layers alone: no adapters, no experts, no parts of several devices."""
    engine, model = deployment.spec.engine, deployment.model
    alone = engine.tensor_parallel == 1 and not engine.max_adapters and engine.expert_memory is None
    return engine.engine == TRANSFORMERS and alone and model.architecture in _LAYERED


def _private_bytes(deployment: Deployment) -> int | None:
    """What an instance takes for itself, weights included that are not in the pool."""
    model, engine = deployment.model, deployment.spec.engine
    copies = model.private_bytes_for(engine.max_concurrency)
    if engine.expert_memory is None:
        return copies
    return min((copies or 0) + _own_weights_bytes(deployment), bounds.LARGEST)


def _own_weights_bytes(deployment: Deployment) -> int:
    model, experts = deployment.model, deployment.spec.engine.expert_memory
    if experts is None:
        return 0
    most = model.experts.memory_bytes if model.experts else 0
    return _resident_bytes(model) + min(experts, most)


def _resident_bytes(model: ModelInfo) -> int:
    return max(0, model.size_bytes - (model.experts.size_bytes if model.experts else 0))
