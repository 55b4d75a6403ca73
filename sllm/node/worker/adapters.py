"""The adapters of a worker, where the agent holds their weights: for requests that name them."""

import asyncio
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from sllm.errors import Internal, WorkerDied
from sllm.node.worker.engine.adapters import Adapter, LowRank
from sllm.node.worker.engine.interface import Engine
from sllm.node.worker.model.adapter_files import TensorForm, adapter_layers, check_fits
from sllm.node.worker.model.held_weights import HeldWeights, PooledWeights, hold

LET_GO_SECONDS: Final = 20.0
"""What an engine may take to let go of an adapter that nobody has requests for: some steps."""
_ANY_RANK: Final = 1 << 30
"""The agent has seen to it before."""


class Adapters:
    """Belongs to the event loop. Running requests go on meanwhile, whatever happens here."""

    def __init__(self, pool_fd: int, engine: Engine, device: torch.device) -> None:
        """There are none.

        Args:
            pool_fd: the pool's memfd.
            engine: has been started, and takes adapters.
            device: that the model is on.
        """
        self._pool_fd = pool_fd
        self._engine = engine
        self._device = device
        self._by_id: dict[str, Adapter] = {}

    def get(self, adapter_id: str) -> Adapter:
        """The adapter of this id.

        Raises:
            WorkerDied: It is not there, which only the end of the agent's books leads to: the
                request may go on elsewhere.
        """
        adapter = self._by_id.get(adapter_id)
        if adapter is None:
            raise WorkerDied(f"the worker does not have the adapter {adapter_id} any more")
        return adapter

    async def load(
        self, adapter_id: str, identity: str, directory: Path, weights: PooledWeights
    ) -> None:
        """Takes an adapter in, unless it is there.

        Args:
            adapter_id: another one for each load.
            identity: of what is loaded: the same for the same weights.
            directory: has its settings.
            weights: where they are.

        Raises:
            UnsupportedAdapter: It does not fit the model.
            InvalidArgument: A tensor is not in what was given.
        """
        if adapter_id not in self._by_id:
            self._by_id[adapter_id] = await asyncio.to_thread(
                self._made, identity, directory, weights
            )

    async def unload(self, adapter_id: str) -> None:
        """Returns once nothing refers to an adapter's memory any more.

        Raises:
            Internal: Something still does, after all the time that it may take.
        """
        adapter = self._by_id.pop(adapter_id, None)
        if adapter is None:
            return
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        weakref.finalize(adapter, loop.call_soon_threadsafe, gone.set)
        del adapter
        try:
            await asyncio.wait_for(gone.wait(), LET_GO_SECONDS)
        except TimeoutError as error:
            raise Internal(f"the engine holds the adapter {adapter_id} still") from error

    def _made(self, identity: str, directory: Path, weights: PooledWeights) -> Adapter:
        forms = [TensorForm(one.name, one.dtype, one.shape) for one in weights.tensors]
        layers = adapter_layers(directory, forms)
        check_fits(layers, self._engine.adapted_layers, _ANY_RANK)
        tensors = self._there(hold(self._pool_fd, weights))
        low_ranks = {
            name: LowRank(tensors[one.a], tensors[one.b], one.scale) for name, one in layers.items()
        }
        return Adapter(identity, low_ranks)

    def _there(self, held: HeldWeights) -> Mapping[str, torch.Tensor]:
        """Where the model is: on processors the weights themselves, which keep their memory."""
        return {name: one.to(self._device) for name, one in held.tensors.items()}
