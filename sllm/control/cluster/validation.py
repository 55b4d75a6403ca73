"""Deployments that no cluster could run are refused by their fields alone."""

import math
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from sllm import bounds, errors
from sllm.control.cluster.specs import (
    AUTO,
    ENGINES,
    PAGE_TOKENS,
    TRANSFORMERS,
    VLLM,
    DeploymentSpec,
    EngineConfig,
    ScalingPolicy,
)
from sllm.control.tenants.names import check_tenant, plain, tenant_of

DTYPES: Final = ("", "float32", "bfloat16", "float16")
MAX_IMAGE_HOSTS: Final = 64
_HOST: Final = re.compile(r"\*|(\*\.)?[a-z0-9_-][a-z0-9._-]{0,252}|[0-9a-f:.]{2,45}")
"""What URLs have as their host: a name, or an address of IPv4 or IPv6 without brackets."""
MAX_TEMPLATE: Final = 131_072
"""Letters of a chat template: ten times those of long ones."""
_QUOTED: Final = str.maketrans({"%": "%25", "#": "%23", "?": "%3F"})
"""What means something in a URL and nothing in a path."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def normalize_source(source: str) -> str:
    """`source` as a URL: a bare absolute path is a file.

    Raises:
        errors.InvalidSource: It is neither.
    """
    url = f"file://{source.translate(_QUOTED)}" if source.startswith("/") else source
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        shown = bounds.without_secrets(source)
        raise errors.InvalidSource(f"source {shown!r} is no URL") from error
    if not scheme:
        raise errors.InvalidSource(
            f"source {bounds.without_secrets(source)!r} is no URL; give one such as "
            "file:///models/tiny, or an absolute path"
        )
    return url


def validate(spec: DeploymentSpec) -> None:
    """Refuses what no cluster could run.

    Raises:
        errors.InvalidName: The name breaks the rule for names.
        errors.InvalidArgument: A field has a value that it may not have.
    """
    check_tenant(tenant_of(spec.name))
    if not _NAME.fullmatch(plain(spec.name)):
        raise errors.InvalidName(
            f"deployment name {spec.name!r} must be 1-63 of [a-z0-9._-], beginning with a letter "
            "or digit"
        )
    letters = len(spec.chat_template)
    _require(
        letters <= MAX_TEMPLATE,
        f"chat_template has {letters} letters, and may have {MAX_TEMPLATE}",
    )
    _validate_image_hosts(spec.image_hosts)
    _validate_engine(spec.engine)
    _validate_scaling(spec.scaling)
    _validate_target(spec.scaling.target_concurrency, spec.engine.max_concurrency)


def _validate_image_hosts(hosts: Sequence[str]) -> None:
    _require(
        len(hosts) <= MAX_IMAGE_HOSTS,
        f"image_hosts names {len(hosts)} hosts, and may name {MAX_IMAGE_HOSTS}",
    )
    for host in hosts:
        _require(
            bool(_HOST.fullmatch(host)),
            f"image_hosts has {host!r:.100}: a host is a name or an address in lower case, without "
            'a scheme or a port; "*.NAME" stands for all below it, and "*" for any',
        )


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
    tokens, page = engine.kv_cache_tokens, PAGE_TOKENS.get(engine.engine, 1)
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
    _validate_expert_memory(engine)


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


def _validate_expert_memory(engine: EngineConfig) -> None:
    size = engine.expert_memory
    if size is None:
        return
    most, other = bounds.LARGEST, "leave one of them out"
    _require(0 < size <= most, f"expert_memory must be from 1 to {most} bytes, it is {size}")
    _require(
        engine.engine != VLLM,
        f"expert_memory is {size} bytes, and engine {VLLM!r} has all experts in memory; deploy "
        f"with engine {TRANSFORMERS!r}, or without expert_memory",
    )
    _require(
        engine.tensor_parallel == 1,
        f"expert_memory is {size} bytes, and tensor_parallel {engine.tensor_parallel}: experts are "
        f"read as they are used by one process alone; {other}",
    )
    _require(
        not engine.max_adapters,
        f"expert_memory is {size} bytes, and max_adapters {engine.max_adapters}: a model whose "
        f"experts are read as they are used takes no adapters; {other}",
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
