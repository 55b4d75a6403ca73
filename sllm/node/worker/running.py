"""A model with its engine, and the requests that it has."""

from dataclasses import dataclass

from sllm.errors import InvalidArgument, NotServed
from sllm.node.worker.adapters import Adapters
from sllm.node.worker.backends.interface import Loaded
from sllm.node.worker.encodings import Encodings
from sllm.node.worker.engine.encoder import Encoder
from sllm.node.worker.engine.interface import Engine
from sllm.node.worker.engine.paged_cache import PagedCache
from sllm.node.worker.engine.pages import EnginePages
from sllm.node.worker.generations import Generations
from sllm.node.worker.layers.lent import LentLayers
from sllm.node.worker.model.held_weights import HeldWeights
from sllm.node.worker.outbox import Outbox


@dataclass(frozen=True, slots=True)
class ParameterLocation:
    """Where a parameter is in this process's memory."""

    name: str
    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunningModel:
    """Belongs to the event loop."""

    weights: HeldWeights
    loaded: Loaded
    engine: Engine | Encoder
    requests: Generations | Encodings
    """What the engine works on."""
    outbox: Outbox
    """Has nothing in it but ends with the worker, where nothing is generated."""
    given_adapters: Adapters | None = None
    """None: the model takes none."""

    @property
    def generations(self) -> Generations:
        """The requests.

        Raises:
            NotServed: Its model does not generate.
        """
        if isinstance(self.requests, Generations):
            return self.requests
        raise NotServed("the model does not generate text: call Embed or Score")

    @property
    def adapters(self) -> Adapters:
        """What requests may name.

        Raises:
            NotServed: Its model takes none.
        """
        if self.given_adapters:
            return self.given_adapters
        raise NotServed("the instance takes no adapters (max_adapters)")

    @property
    def encodings(self) -> Encodings:
        """Texts of which vectors or scores are made.

        Raises:
            NotServed: Its model generates.
        """
        if isinstance(self.requests, Encodings):
            return self.requests
        raise NotServed("the model generates text: call Generate")

    @property
    def pages(self) -> EnginePages | None:
        """Of the engine's cache. None: it has none, or they cannot leave it."""
        return None if isinstance(self.engine, Encoder) else self.engine.pages

    def lend(self, layers: range) -> LentLayers:
        """Layers of the model, to be computed for another process.

        Raises:
            InvalidArgument: It does not have them, or is not run layer by layer.
        """
        parts, pages = self.loaded.parts(), self.pages
        if parts is None or not isinstance(pages, PagedCache):
            raise InvalidArgument("the engine does not run its model layer by layer")
        return LentLayers(parts.whole, pages.whole, layers)

    def parameters(self) -> list[ParameterLocation]:
        """Where the parameters are, if weights are used where they lie; tied ones once."""
        return [
            ParameterLocation(name, parameter.data_ptr(), parameter.nbytes)
            for name, parameter in self.loaded.parameters()
        ]

    def cancel(self, request_id: str) -> None:
        """Ends a generation, which is not named again; one that is not there has ended."""
        if isinstance(self.requests, Generations):
            self.requests.cancel(request_id)

    def cancel_all(self) -> None:
        """Ends all generations without a word; other requests end with their calls."""
        if isinstance(self.requests, Generations):
            self.requests.cancel_all()
