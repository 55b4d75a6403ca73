"""What an instance is to be, as the control plane asks for it."""

from dataclasses import dataclass

from sllm import errors
from sllm.node.peers.types import FormPeers, Lender, Peers
from sllm.node.worker.messages import NO_PARSERS, ParserNames


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How a model is to be run; see EngineConfig in the protocol."""

    engine: str
    dtype: str | None
    """Name of a torch dtype to convert to. None: as stored."""
    kv_cache_tokens: int | None
    max_concurrency: int | None
    pack: bool = False
    """Whether local safetensors are packed on this node, and not read where they lie."""
    parsers: ParserNames = NO_PARSERS
    """That take answers in conversations apart."""
    tensor_parallel: int = 1
    """Devices that run the model together."""
    max_adapters: int = 0
    """Adapters that an instance has at once. 0: it takes none."""
    max_adapter_rank: int | None = None
    """The greatest that they may have, which is looked at when they are deployed."""
    expert_bytes: int | None = None
    """Memory for the experts of an instance, which stay on SSD otherwise. None: all weights are in
    memory."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What the control plane asks for."""

    instance_id: str
    deployment: str
    source: str
    engine: EngineSpec
    kv_bytes: int
    """Share of the node's KV budget."""
    identity: str = ""
    """What the source must be. Empty: whatever it is."""
    private_bytes: int | None = None
    """Memory that it is expected to take for copies of its own. None: not known."""
    peers: Peers | None = None
    """Other nodes to have its weights from, where this one lacks them."""
    lenders: tuple[Lender, ...] = ()
    """Other nodes that compute some of its layers until their weights are here."""
    forms: tuple[FormPeers, ...] = ()
    """Other nodes that have made its weights ready for the engine."""

    @property
    def kind(self) -> tuple[str, ...]:
        """The same for instances of one checkpoint that one engine runs on as many devices."""
        engine = self.engine
        ranks, experts = str(engine.tensor_parallel), str(engine.expert_bytes or "")
        return self.identity or self.source, engine.dtype or "", engine.engine, ranks, experts


def check_same(known: InstanceSpec, asked: InstanceSpec) -> None:
    """Whether what is asked for is the instance that has this id.

    Raises:
        errors.InvalidArgument: It is another one.
    """
    if _what(known) != _what(asked):
        raise errors.InvalidArgument(
            f"instance {known.instance_id} is of {known.deployment}, from {known.source}; a new "
            "instance needs an id of its own"
        )


def _what(spec: InstanceSpec) -> tuple[str, str, str]:
    return spec.deployment, spec.source, spec.identity
