"""Deployments, the models that they serve, and their instances.

Times are seconds: durations, and moments since the Unix epoch.
"""

from dataclasses import dataclass

from sllm.client.types.enums import DeploymentState, InstanceState
from sllm.client.types.events import Progress
from sllm.embedding.purpose import GENERATES, Purpose


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a low-rank adapter (LoRA) is, read from its files."""

    rank: int
    """The greatest of all that it adds."""
    target_modules: tuple[str, ...]
    """Last parts of the names of the layers that it adds to, in order."""


@dataclass(frozen=True, slots=True)
class Experts:
    """What the experts of a model take."""

    size_bytes: int
    """Of the model's bytes, those of its experts."""
    memory_bytes: int
    """Memory for all of them, each in whole pages."""
    least_memory_bytes: int
    """Memory for those of the layer that has most: the least `expert_memory` that is taken."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a model needs from a node, read from its files."""

    architecture: str
    """The first entry of the configuration's `architectures`."""
    size_bytes: int
    """Bytes of the tensors, in the dtype in which they are served."""
    context_tokens: int
    """Tokens that the model's positions allow."""
    kv_bytes_per_token: int
    """Bytes of KV cache for one token."""
    digest: str
    """The checkpoint's content digest, once it has been imported somewhere. Empty before."""
    purpose: Purpose = GENERATES
    """What it is for."""
    adapter: Adapter | None = None
    """Of an adapter, whose size and digest are its own; all else is its base's."""
    experts: Experts | None = None
    """Of a mixture of experts that can stay on SSD."""


@dataclass(frozen=True, slots=True)
class LearnedKeepTimes:
    """What the pauses between a deployment's requests have taught."""

    instance: float
    """Seconds that an idle instance stays."""
    weights: float
    """Seconds from then on for which its weights are worth their room in DRAM."""


@dataclass(frozen=True, slots=True)
class TunedConcurrency:
    """What a target for the time between tokens has come to, on average over instances."""

    requests: int
    """Requests that an instance works on at once now."""
    time_per_token: float
    """Seconds between two tokens of a request, as seen last."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What should exist: a name, a source, an engine, a scaling policy."""

    name: str
    """Unique in the cluster."""
    source: str
    """URL of the checkpoint."""
    state: DeploymentState
    """Where its checkpoint is on its way."""
    message: str
    """For FAILED: what went wrong and what to do. Otherwise why instances from before a change go
    on although others are to replace them, or why there are fewer than min_replicas; mostly
    empty."""
    engine: str
    """Engine that its instances run on: "vllm" or "transformers"."""
    dtype: str
    """torch dtype that weights are converted to when imported. Empty: as they are stored."""
    kv_cache_tokens: int | None
    """Tokens that one instance's KV cache can hold. None: the default."""
    max_concurrency: int | None
    """Requests that one instance works on at once. None: the default."""
    pack: bool
    """Whether local safetensors are packed on each node, and not read where they lie."""
    tool_parser: str
    """That takes calls of tools out of answers. Empty: they stay text."""
    reasoning_parser: str
    """The same of thoughts."""
    tensor_parallel: int
    """Devices of one node that an instance runs on together."""
    min_replicas: int
    """Instances kept even without requests."""
    max_replicas: int
    """Instances at most."""
    keep_alive: float
    """Seconds that an idle instance stays."""
    target_concurrency: int | None
    """Requests that an instance should have before another one is started. None: as many as it
    works on at once."""
    model: Model
    """What the model needs from a node."""
    created_at: float
    """When it was deployed."""
    ready_instances: int
    """Instances that are ready now."""
    queued_requests: int
    """Requests that wait in the router."""
    loading: Progress | None
    """While PREPARING: how far the checkpoint has come."""
    max_adapters: int = 0
    """Adapters over it that one instance has at once. 0: none."""
    max_adapter_rank: int | None = None
    """The greatest rank that they may have. None: the default."""
    expert_memory: int | None = None
    """Bytes that the experts of one instance may take, which stay on SSD otherwise. None: all
    weights are in memory."""
    base: str = ""
    """Of an adapter, the deployment that it is over. Empty: it is a model of its own."""
    image_hosts: tuple[str, ...] = ()
    """That images may be fetched from. Empty: none."""
    learn_keep_alive: bool | None = None
    """Whether idle instances stay for less than `keep_alive` where that is not worth its memory.
    None: as the control plane is set up."""
    learned: LearnedKeepTimes | None = None
    """For how long they stay by what has been learned. None: as `keep_alive` says."""
    target_time_per_token: float | None = None
    """Seconds between two tokens of a request, for which an instance works on fewer requests at
    once if need be. None: there is no such target."""
    tuned: TunedConcurrency | None = None
    """What that has come to. None: nothing was seen yet, or there is no target."""


@dataclass(frozen=True, slots=True)
class KvShare:
    """What a KV cache has of memory that follows what its requests need."""

    size_bytes: int
    """That it may take now. It was started with the instance's `kv_bytes`."""
    used_bytes: int
    """Of that, what its requests have."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a deployment on one node."""

    instance_id: str
    """Unique in the cluster."""
    deployment: str
    """Name of the deployment."""
    node_id: str
    """Node that it runs on."""
    state: InstanceState
    """Where it is in its life."""
    running_requests: int
    """Requests that the worker has taken and not finished."""
    kv_bytes: int
    """Bytes of the node's KV budget that it was started with."""
    digest: str
    """Content digest of the checkpoint that it serves."""
    started_at: float
    """When its start began."""
    worker_pid: int
    """Process id of the worker on its node. 0 while there is none."""
    orphan_until: float | None = None
    """Set if no deployment explains it: when it ends, unless its deployment is made again."""
    own_bytes: int = 0
    """Memory that it takes for itself, beside what it shares and its KV cache. 0: not measured."""
    engine: str = ""
    """Engine that it runs on."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that it has, for which requests need not wait."""
    kv_share: KvShare | None = None
    """What its KV cache has now. None: `kv_bytes`, and no other."""
