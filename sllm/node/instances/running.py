"""What a start of an instance has brought up."""

from dataclasses import dataclass

from sllm.node.device.kv_sharing import KvShare
from sllm.node.instances.arriving import Arriving
from sllm.node.instances.worker_client import Worker
from sllm.node.tiers.types import Tier
from sllm.node.worker.messages import ModelDescription


@dataclass(frozen=True, slots=True)
class Running:
    """What a start has brought up."""

    worker: Worker
    digest: str
    size_bytes: int
    """Of the checkpoint."""
    from_tier: Tier
    """Highest tier that held the weights when the start began."""
    context_tokens: int
    """What prompt and generation of one request may have together."""
    model: ModelDescription
    """What its configuration says of it."""
    tensor_bytes: int
    """Of the weights, without what lies between them."""
    identity: str
    """Of what it serves; see `sllm.checkpoint.sources.identity`."""
    ready_made: bool = False
    """Whether its weights were made ready for the engine."""
    dropped_ready: bool = False
    """Whether such weights were there, and have turned out to be of no use."""
    arriving: Arriving | None = None
    """Weights that are still on their way. None: all were there when the engine started."""
    expert_bytes: int = 0
    """Memory that experts may come to take in the worker, where they are read as they are used."""
    logits_bytes: int = 0
    """The same of a step's logits, with as many requests as there may be in it."""
    kv_share: KvShare | None = None
    """Of the node's memory for KV caches. None: its own is in a device's memory."""

    @property
    def kv_bytes(self) -> int:
        """What its KV cache may have come to take of the node's memory."""
        return max(self.kv_share.bytes, self.kv_share.granted) if self.kv_share else 0

    @property
    def later_bytes(self) -> int:
        """The same of all that comes only as requests do, the KV cache aside."""
        return self.expert_bytes + self.model.image_bytes + self.logits_bytes
