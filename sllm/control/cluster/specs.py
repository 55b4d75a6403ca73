"""What should exist: a name, a checkpoint's source, an engine, and how far to scale."""

import math
import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final
from urllib.parse import urlsplit

from sllm import bounds, errors
from sllm.embedding.purpose import GENERATES, Purpose, Task

AUTO: Final = "auto"
"""The first engine of a node that the model runs on."""
VLLM: Final = "vllm"
TRANSFORMERS: Final = "transformers"
ENGINES: Final = (VLLM, TRANSFORMERS)
_PAGE_TOKENS: Final = {VLLM: 32}
"""Tokens of a page, of engines whose requests have whole pages."""
DTYPES: Final = ("", "float32", "bfloat16", "float16")
DEFAULT_ADAPTER_RANK: Final = 64
DEFAULT_KV_TOKENS: Final = 8192
"""Tokens of KV cache that an instance gets if its deployment does not say."""

MAX_TEMPLATE: Final = 131_072
"""Letters of a chat template: ten times those of long ones."""

_QUOTED: Final = str.maketrans({"%": "%25", "#": "%23", "?": "%3F"})
"""What means something in a URL and nothing in a path."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


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

    def private_bytes_for(self, requests: int) -> int | None:
        """For copies of an instance that works on so many requests at once. None: not known."""
        if self.private_bytes is None:
            return None
        return min(self.private_bytes + requests * self.private_bytes_per_request, bounds.LARGEST)

    def with_private_of(self, other: "ModelInfo") -> "ModelInfo":
        """This model, with what the other's cache and copies take on its engine."""
        return replace(
            self,
            kv_bytes_per_token=other.kv_bytes_per_token,
            private_bytes=other.private_bytes,
            private_bytes_per_request=other.private_bytes_per_request,
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
        """Tokens of KV cache that one instance should have."""
        engine = self.spec.engine
        if engine.kv_cache_tokens is None:
            return min(DEFAULT_KV_TOKENS, 16 * self.model.context_tokens)
        return engine.kv_cache_tokens - engine.kv_cache_tokens % _PAGE_TOKENS.get(engine.engine, 1)

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
    def _running(self) -> tuple[str | int, ...]:
        engine = self.spec.engine
        parsers = engine.tool_parser, engine.reasoning_parser
        counts = self.kv_tokens, engine.max_concurrency, engine.max_adapters
        return engine.engine, engine.dtype, *counts, engine.tensor_parallel, *parsers


class DeploymentState(IntEnum):
    """How far a deployment's checkpoint is; the numbers are those of the protocol."""

    PREPARING = 1
    AVAILABLE = 2
    FAILED = 3


def normalize_source(source: str) -> str:
    """`source` as a URL: a bare absolute path is a file.

    Raises:
        errors.InvalidSource: It is neither.
    """
    url = f"file://{source.translate(_QUOTED)}" if source.startswith("/") else source
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise errors.InvalidSource(f"source {source!r} is no URL: {error}") from error
    if not scheme:
        raise errors.InvalidSource(
            f"source {source!r} is no URL; give one such as file:///models/tiny, or an absolute "
            "path"
        )
    return url


def validate(spec: DeploymentSpec) -> None:
    """Refuses what no cluster could run.

    Raises:
        errors.InvalidName: The name breaks the rule for names.
        errors.InvalidArgument: A field has a value that it may not have.
    """
    if not _NAME.fullmatch(spec.name):
        raise errors.InvalidName(
            f"deployment name {spec.name!r} must be 1-63 of [a-z0-9._-], beginning with a letter "
            "or digit"
        )
    letters = len(spec.chat_template)
    _require(
        letters <= MAX_TEMPLATE,
        f"chat_template has {letters} letters, and may have {MAX_TEMPLATE}",
    )
    _validate_engine(spec.engine)
    _validate_scaling(spec.scaling)
    _validate_target(spec.scaling.target_concurrency, spec.engine.max_concurrency)


def _validate_engine(engine: EngineConfig) -> None:
    known = (AUTO, *ENGINES)
    _require(
        engine.engine in known,
        f"engine {engine.engine!r} is unknown; known: {', '.join(known)}",
    )
    _require(
        engine.engine != TRANSFORMERS or not engine.has_parsers,
        f"tool_parser and reasoning_parser are vLLM's; engine {engine.engine!r} has none",
    )
    _validate_tensor_parallel(engine)
    bounds.name(engine.tool_parser, "tool_parser")
    bounds.name(engine.reasoning_parser, "reasoning_parser")
    _require(engine.dtype in DTYPES, f"dtype {engine.dtype!r} is unknown; known: {DTYPES[1:]}")
    tokens, page = engine.kv_cache_tokens, _PAGE_TOKENS.get(engine.engine, 1)
    _require(tokens is None or tokens > 0, f"kv_cache_tokens must be positive, not {tokens}")
    _require(
        tokens is None or tokens >= page,
        f"kv_cache_tokens must be at least {page} on {engine.engine}, whose pages have that many; "
        f"it is {tokens}",
    )
    most = engine.max_concurrency
    _require(
        0 < most <= bounds.MAX_CONCURRENCY,
        f"max_concurrency must be from 1 to {bounds.MAX_CONCURRENCY}, not {most}",
    )
    _validate_adapters(engine)


def _validate_adapters(engine: EngineConfig) -> None:
    most, rank = engine.max_adapters, engine.max_adapter_rank
    _require(
        0 <= most <= bounds.MAX_ADAPTERS,
        f"max_adapters must be from 0 to {bounds.MAX_ADAPTERS}, not {most}",
    )
    _require(
        rank is None or 1 <= rank <= bounds.MAX_ADAPTER_RANK,
        f"max_adapter_rank must be from 1 to {bounds.MAX_ADAPTER_RANK}, not {rank}",
    )


def _validate_tensor_parallel(engine: EngineConfig) -> None:
    count, most = engine.tensor_parallel, bounds.MAX_TENSOR_PARALLEL
    _require(0 < count <= most, f"tensor_parallel must be from 1 to {most}, it is {count}")
    _require(
        count == 1 or engine.engine != TRANSFORMERS,
        f"tensor_parallel is {count}, and engine {TRANSFORMERS!r} runs a model on one device; "
        f"deploy with engine {VLLM!r}, or with tensor_parallel 1",
    )
    _require(
        count == 1 or not engine.max_adapters,
        f"tensor_parallel is {count}, and max_adapters {engine.max_adapters}: several "
        "devices take no adapters; leave one of them out",
    )


def _validate_scaling(scaling: ScalingPolicy) -> None:
    least, most, keep = scaling.min_replicas, scaling.max_replicas, scaling.keep_alive
    _require(least >= 0, f"min_replicas must not be negative, it is {least}")
    _require(
        most >= max(1, least),
        f"max_replicas must be at least 1 and at least min_replicas ({least}), it is {most}",
    )
    _require(
        most <= bounds.MAX_REPLICAS,
        f"max_replicas must be at most {bounds.MAX_REPLICAS}, it is {most}",
    )
    _require(
        math.isfinite(keep) and keep >= 0,
        f"keep_alive must be finite and not negative, it is {keep} s",
    )


def _validate_target(target: int | None, most: int) -> None:
    _require(
        target is None or 1 <= target <= most,
        f"target_concurrency must be from 1 to max_concurrency ({most}), it is {target}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise errors.InvalidArgument(message)


def revise(present: Deployment, spec: DeploymentSpec, found: ModelInfo) -> Deployment:
    """`present` with the policy of `spec`, which must name the same source.

    Args:
        present: as it is.
        spec: as it is to be.
        found: what the source is now. If that is another checkpoint, the deployment serves it from
            now on.

    Raises:
        errors.DeploymentExists: `spec` names another source.
    """
    check_source(present, spec)
    return replace(present, spec=spec, model=_revised_model(present, spec, found))


def _revised_model(present: Deployment, spec: DeploymentSpec, found: ModelInfo) -> ModelInfo:
    known = present.model
    if found.identity not in ("", known.identity):
        return found
    before, after = present.spec.engine, spec.engine
    same = (before.engine, before.tensor_parallel) == (after.engine, after.tensor_parallel)
    if found.private_bytes is None and same:
        return known
    return known.with_private_of(found)


def check_source(present: Deployment, spec: DeploymentSpec) -> None:
    """Makes sure that `spec` names the source that `present` does.

    Raises:
        errors.DeploymentExists: It names another one.
    """
    here, there = present.spec, spec
    if here.base != there.base:
        raise errors.DeploymentExists(
            f"deployment {spec.name} is {_kind(here)}, not {_kind(there)}; delete it first, or "
            "choose another name",
            metadata={"source": here.source},
        )
    if (here.source, here.engine.dtype) != (there.source, there.engine.dtype):
        raise errors.DeploymentExists(
            f"deployment {spec.name} serves {_checkpoint(here)}, not {_checkpoint(there)}; "
            "delete it first, or choose another name",
            metadata={"source": here.source},
        )


def _kind(spec: DeploymentSpec) -> str:
    return f"an adapter over {spec.base}" if spec.base else "a model of its own"


def _checkpoint(spec: DeploymentSpec) -> str:
    return f"{spec.source} as {spec.engine.dtype}" if spec.engine.dtype else spec.source
