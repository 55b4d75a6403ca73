"""What a deployment needs of a node."""

from dataclasses import dataclass
from typing import Final

from sllm.control.cluster.specs import TRANSFORMERS, Deployment

LEAST_KV_TOKENS: Final = 512
"""A node is too small if its whole KV budget holds fewer tokens than this and the context."""


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


def need_of(deployment: Deployment) -> Need:
    """What an instance of `deployment` needs."""
    model, spec = deployment.model, deployment.spec
    checkpoint = Checkpoint(spec.source, model.size_bytes, model.digest)
    if spec.base:  # it is brought to nodes, and instances of its base are what is started
        return Need(spec.name, checkpoint, kv_bytes=0, least_kv_bytes=0, engine="")
    least_tokens = min(deployment.kv_tokens, model.context_tokens, LEAST_KV_TOKENS)
    return Need(
        deployment=spec.name,
        checkpoint=checkpoint,
        kv_bytes=deployment.kv_tokens * model.kv_bytes_per_token,
        least_kv_bytes=least_tokens * model.kv_bytes_per_token,
        max_concurrency=spec.engine.max_concurrency,
        engine=spec.engine.engine,
        private_bytes=model.private_bytes_for(spec.engine.max_concurrency),
    )
