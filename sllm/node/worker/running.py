"""A model with its engine, and the requests that it has."""

from dataclasses import dataclass

import torch

from sllm.errors import InvalidArgument, NotServed
from sllm.node.worker.adapters import Adapters
from sllm.node.worker.backends.interface import Loaded
from sllm.node.worker.building import BuiltModel
from sllm.node.worker.encodings import Encodings
from sllm.node.worker.engine.cache_pages import CachePages
from sllm.node.worker.engine.cache_share import CacheUse
from sllm.node.worker.engine.encoder import Encoder
from sllm.node.worker.engine.interface import Engine
from sllm.node.worker.engine.niceness import Standing
from sllm.node.worker.engine.paged_cache import PagedCache
from sllm.node.worker.engine.pages import EnginePages
from sllm.node.worker.generations import Generations
from sllm.node.worker.layers.lent import LentLayers
from sllm.node.worker.model.description import context_tokens
from sllm.node.worker.model.held_weights import HeldWeights
from sllm.node.worker.outbox import Outbox
from sllm.node.worker.preparing import PreparedModel


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
    context_tokens: int
    """What prompt and generation of one request may have together; or one text, of which a vector
    or a score is made."""
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

    @property
    def resizes_cache(self) -> bool:
        """Whether the engine's cache can be made larger and smaller."""
        return isinstance(self.pages, CachePages) and self.pages.resizes

    def resize_cache(self, share_bytes: int) -> CacheUse:
        """Says what the engine's cache may take; see `CachePages.resize`. In any thread.

        Raises:
            InvalidArgument: Its size is fixed.
        """
        if isinstance(self.pages, CachePages) and self.pages.resizes:
            return self.pages.resize(share_bytes)
        raise InvalidArgument("the cache of this worker has a fixed size")

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


def generating(
    prepared: PreparedModel, built: BuiltModel, engine: Engine, kv_tokens: int, pool_fd: int
) -> RunningModel:
    """A model that generates by an engine with such a KV cache, which is not started here."""
    context = min(context_tokens(prepared.files.architecture.config), kv_tokens)
    # On a device processors are not what others wait for, and ranks would wait for one another.
    stands = not built.held.on_device and prepared.options.ranks == 1
    outbox, adapters = Outbox(), _adapters(prepared, built.held, engine, pool_fd)
    generations = Generations(
        prepared.files,
        prepared.texts,
        prepared.parsers,
        engine,
        context,
        outbox,
        adapters,
        prepared.images,
        Standing() if stands else None,
    )
    return RunningModel(built.held, built.loaded, engine, generations, outbox, context, adapters)


def _adapters(
    prepared: PreparedModel, held: HeldWeights, engine: Engine, pool_fd: int
) -> Adapters | None:
    if not prepared.options.takes_adapters:
        return None
    return Adapters(pool_fd, engine, torch.device("cuda" if held.on_device else "cpu"))


def encoding(prepared: PreparedModel, built: BuiltModel, encoder: Encoder) -> RunningModel:
    """A model that embeds or scores by an encoder, which is not started here."""
    context = prepared.description.context_tokens
    encodings = Encodings(prepared.files, prepared.texts, encoder, context)
    return RunningModel(built.held, built.loaded, encoder, encodings, Outbox(), context)
