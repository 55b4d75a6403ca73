"""How a worker's model uses its weights: what it waits for, and what it is seen to use first."""

import asyncio
from collections.abc import Sequence

from sllm.errors import CheckpointCorrupt, InvalidArgument
from sllm.node.worker.building import BuiltModel, GivenWeights
from sllm.node.worker.experts.on_demand import OnDemand
from sllm.node.worker.layers.borrowed import BorrowedLayers
from sllm.node.worker.layers.decoder import layers_of
from sllm.node.worker.model.arrivals import Arrivals
from sllm.node.worker.model.first_use import FirstUse, FirstUses
from sllm.node.worker.model.held_weights import PooledWeights
from sllm.node.worker.model.mapping import Mapping
from sllm.node.worker.model.parts import Parts


class WeightsUse:
    """Of one model. Belongs to the event loop, but for `settle`."""

    def __init__(self) -> None:
        self._arrivals: Arrivals | None = None
        """Of weights that were on their way when the engine started."""
        self._borrowed: tuple[BorrowedLayers, ...] = ()
        """Those of its layers that others compute until their weights are there."""
        self._all_own = asyncio.Event()
        """Whether nobody else computes any more."""
        self._all_own.set()
        self._first_uses: FirstUses | None = None
        self.experts: OnDemand | None = None
        """Of weights on disk, which come as they are used."""

    @property
    def corrupt(self) -> CheckpointCorrupt | None:
        """What was found of weights on disk that are not what was written. None: nothing was."""
        return self.experts.corrupt if self.experts else None

    def watch(
        self,
        built: BuiltModel,
        weights: GivenWeights,
        *,
        tell_first_use: bool,
    ) -> None:
        """Stands before the model's parts, if weights are on their way or their use is to be told.

        Raises:
            InvalidArgument: The engine does not run the model in parts.
        """
        self.experts = built.experts
        awaited = weights.awaited if isinstance(weights, PooledWeights) else frozenset()
        if not (awaited or tell_first_use):
            return
        parts, mapping = built.loaded.parts(), built.held.kept
        if parts is None or not isinstance(mapping, Mapping):
            raise InvalidArgument("the engine does not run its model in parts that could wait")
        if tell_first_use:
            self._first_uses = FirstUses(mapping, weights.tensors, parts)
        if awaited:
            self._arrivals = Arrivals(mapping, awaited)
            asked = weights.borrowed if isinstance(weights, PooledWeights) else ()
            self._stand_before(parts, self._arrivals, asked, mapping)

    def _stand_before(
        self, parts: Parts, arrivals: Arrivals, asked: Sequence[range], mapping: Mapping
    ) -> None:
        layers = (layers_of(parts.whole) or ()) if asked else ()
        by_module = {id(part.module): part for part in parts.parts}
        fitting = [one for one in asked if one and one.stop <= len(layers)]
        lent = [[by_module[id(layers[index])] for index in one] for one in fitting]
        self._borrowed = tuple(
            BorrowedLayers(one, theirs, arrivals, mapping)
            for one, theirs in zip(fitting, lent, strict=True)
        )
        if self._borrowed:
            self._all_own.clear()
        standing_aside = {id(part) for theirs in lent for part in theirs}
        arrivals.stand_before(part for part in parts.parts if id(part) not in standing_aside)

    def borrowed(self, layers: range) -> BorrowedLayers:
        """Layers that others compute until their weights are there.

        Raises:
            InvalidArgument: They are none of those, or the model is not run layer by layer.
        """
        for one in self._borrowed:
            if one.layers == layers:
                return one
        raise InvalidArgument(f"the worker borrows no layers {layers.start} to {layers.stop}")

    async def until_own(self) -> None:
        """Returns once no layer is computed by others any more, if any was."""
        await self._all_own.wait()

    def settle(self) -> None:
        """Tells that the engine has started. It reads what is known of the process's memory."""
        if self._first_uses:
            self._first_uses.begin()

    def arrived(self, chunks: Sequence[int]) -> None:
        """Lets parts go on that have waited for chunks, which are there now.

        Raises:
            InvalidArgument: All were there when the engine started.
            OSError: The kernel refused to map them.
        """
        if self._arrivals is None:
            raise InvalidArgument("the worker waits for no weights")
        self._arrivals.arrived(chunks)
        if all(one.is_own for one in self._borrowed):
            self._all_own.set()

    def take_first_use(self) -> FirstUse | None:
        """In which order the model uses its tensors, once, after its first pass; if asked for."""
        return self._first_uses.take() if self._first_uses else None

    def close(self) -> None:
        """Ends a step that waits for weights."""
        if self._arrivals:
            self._arrivals.close()
        if self.experts:
            self.experts.close()
