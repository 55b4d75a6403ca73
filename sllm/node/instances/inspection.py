"""What a model needs from this node, found out before any of it is started."""

import asyncio
from dataclasses import dataclass

from sllm import errors
from sllm.embedding.purpose import Purpose
from sllm.node.device.interface import Devices
from sllm.node.instances.private_memory import PrivateMemory, private_memory
from sllm.node.instances.zygotes import Described, Zygotes
from sllm.node.store.tier_store import TierStore
from sllm.node.transfers.work import Found
from sllm.node.worker.messages import ParserNames


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model needs from a node."""

    architecture: str
    size_bytes: int
    """Of the tensors, in the dtype in which they are served."""
    context_tokens: int
    kv_bytes_per_token: int
    digest: str
    """Empty until the checkpoint has been imported."""
    identity: str
    """Of the source, as it is now."""
    engine: str
    """On which it was found to run."""
    purpose: Purpose
    """What it is for."""
    private: PrivateMemory | None
    """What an instance takes for copies of its own. None: they are in the memory of devices."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a model is to be run."""

    engine: str
    parsers: ParserNames
    """That are to take its answers apart."""
    tensor_parallel: int = 1
    """Devices that run it together."""


class Inspector:
    """Looks at models where they lie, and tries them."""

    def __init__(self, store: TierStore, devices: Devices, zygotes: Zygotes) -> None:
        self._store = store
        self._devices = devices
        self._zygotes = zygotes

    async def inspect(
        self, source: str, dtype: str | None, identity: str, asked: Asked
    ) -> ModelInfo:
        """See `Agent.inspect`."""
        found, tried = await self._try(source, dtype, identity, asked)
        return ModelInfo(
            architecture=tried.model.architecture,
            size_bytes=found.size_bytes,
            context_tokens=tried.model.context_tokens,
            kv_bytes_per_token=tried.model.kv_bytes_per_token,
            digest=found.digest or "",
            identity=found.record.identity,
            engine=tried.engine,
            purpose=tried.model.purpose,
            private=await self._private(found, tried, asked.tensor_parallel),
        )

    async def _try(
        self, source: str, dtype: str | None, identity: str, asked: Asked
    ) -> tuple[Found, Described]:
        found = await self._store.inspect(source, dtype, identity=identity)
        self._devices.check_fits(found.size_bytes)
        try:
            return found, await self._describe(found, dtype, asked)
        except errors.SllmError:
            if await asyncio.to_thread(found.directory.is_dir):
                raise
        # A copy that was found to be bad has been set aside while it was read.
        found = await self._store.inspect(source, dtype, identity=identity)
        return found, await self._describe(found, dtype, asked)

    async def _describe(self, found: Found, dtype: str | None, asked: Asked) -> Described:
        return await self._zygotes.describe(
            found.directory, dtype, asked.engine, asked.parsers, asked.tensor_parallel
        )

    async def _private(
        self, found: Found, tried: Described, tensor_parallel: int
    ) -> PrivateMemory | None:
        """In a thread: mixtures of experts have many thousands of tensors."""
        if self._devices.infos():
            return None
        engine, vocabulary = tried.engine, tried.model.vocabulary
        return await asyncio.to_thread(
            private_memory, engine, found.tensors, vocabulary, tensor_parallel
        )
