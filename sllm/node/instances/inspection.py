"""What a model needs from this node, found out before any of it is started."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sllm import errors
from sllm.checkpoint.format.experts import ExpertBytes, expert_bytes
from sllm.checkpoint.sources.adapters import is_adapter
from sllm.checkpoint.sources.file_names import ADAPTER_CONFIG
from sllm.config import format_bytes
from sllm.embedding.purpose import Purpose, Task
from sllm.node.device.interface import Devices
from sllm.node.instances.books import ON_PROCESSORS
from sllm.node.instances.private_memory import PrivateMemory, private_memory
from sllm.node.instances.zygotes import AUTO, Described, Zygotes
from sllm.node.store.tier_store import TierStore
from sllm.node.transfers.work import Found
from sllm.node.worker.messages import NO_PARSERS, ParserNames


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
    """What an instance takes for copies of its own, and for images. None: the memory of devices."""
    experts: ExpertBytes | None = None
    """What its experts take. None: it is no mixture of experts."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that was held against its base, or is in the tiers."""

    size_bytes: int
    """Of the tensors, in the dtype in which they are served."""
    digest: str
    """Empty until the checkpoint has been imported."""
    identity: str
    """Of the source, as it is now."""
    rank: int = 0
    """The greatest of all that it adds. 0: it was not looked at."""
    target_modules: tuple[str, ...] = ()
    """Last parts of the names of the layers that it adds to, in order."""
    base_identity: str = ""
    """Of the base that it was held against."""


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter is held against."""

    source: str
    dtype: str | None
    """Name of a torch dtype that weights are converted to. None: as stored."""
    identity: str
    """Of what the source must be."""
    engine: str
    """That it runs on."""
    max_rank: int
    """That its adapters may have."""


class Inspector:
    """Looks at models where they lie, and tries them."""

    def __init__(self, store: TierStore, devices: Devices, zygotes: Zygotes) -> None:
        self._store = store
        self._devices = devices
        self._zygotes = zygotes

    async def inspect(
        self,
        source: str,
        dtype: str | None,
        identity: str = "",
        engine: str = AUTO,
        parsers: ParserNames = NO_PARSERS,
        *,
        takes_adapters: bool = False,
        ranks: int = 1,
        expert_memory: int | None = None,
    ) -> ModelInfo:
        """What the model at `source` needs, which must be of this identity unless that is empty.

        Args:
            source: its URL.
            dtype: name of a torch dtype that weights are converted to. None: as stored.
            identity: of what the source must be.
            engine: on which it is to run. `AUTO`: the first of this node's that can.
            parsers: that are to take its answers apart.
            takes_adapters: whether it is to be run with adapters.
            ranks: devices that run it together.
            expert_memory: bytes that its experts may take, which stay on SSD otherwise. None: all
                weights are in memory.

        Raises:
            errors.SllmError: Why it cannot be served here.
        """
        describe = partial(
            self._zygotes.describe,
            dtype=dtype,
            engine=engine,
            parsers=parsers,
            takes_adapters=takes_adapters,
            ranks=ranks,
            on_disk=expert_memory is not None,
        )
        found, tried = await self._try(
            source, dtype, identity, describe, on_disk=expert_memory is not None
        )
        experts = await asyncio.to_thread(expert_bytes, found.tensors)
        if expert_memory is not None:
            self._check_experts(source, experts, expert_memory)
        return ModelInfo(
            architecture=tried.model.architecture,
            size_bytes=found.size_bytes,
            context_tokens=tried.model.context_tokens,
            kv_bytes_per_token=tried.model.kv_bytes_per_token,
            digest=found.digest or "",
            identity=found.record.identity,
            engine=tried.engine,
            purpose=tried.model.purpose,
            private=await self._private(found, tried, ranks),
            experts=experts,
        )

    def _check_experts(self, source: str, experts: ExpertBytes | None, memory: int) -> None:
        if self._devices.infos():
            raise errors.UnsupportedModel(ON_PROCESSORS)
        if experts is None:
            raise errors.UnsupportedModel(
                f"{source} is no mixture of experts, and expert_memory is for those alone: leave "
                "it out"
            )
        if memory < (least := experts.largest_layer):
            raise errors.InvalidArgument(
                f"expert_memory is {memory} bytes, and the experts of one layer, each of which a "
                f"prompt may use, take {least} ({format_bytes(least)}); all of the model take "
                f"{format_bytes(experts.total)}"
            )

    async def inspect_adapter(self, source: str, dtype: str | None, base: Base) -> AdapterInfo:
        """What the adapter at `source` is, which must fit its base.

        Args:
            source: its URL.
            dtype: name of a torch dtype that weights are converted to. None: as stored.
            base: what it is held against.

        Raises:
            errors.SllmError: Why it cannot be served.
        """
        model = await self._store.inspect(base.source, base.dtype, identity=base.identity)
        found = await self._store.inspect(source, dtype)
        if not await _adapts(found):
            raise errors.UnsupportedAdapter(
                f"{source} is no adapter, which has an {ADAPTER_CONFIG}: deploy it without a base"
            )
        zygote = self._zygotes.of(base.engine)
        with TemporaryDirectory() as scratch:
            tensors = Path(scratch) / "tensors.json"  # there may be more than a message holds
            await asyncio.to_thread(_list_tensors, found, tensors)
            fit = await zygote.describe_adapter(
                found.directory, tensors, model.directory, base.max_rank
            )
        return replace(
            _adapter_info(found),
            rank=fit.rank,
            target_modules=tuple(fit.target_modules),
            base_identity=model.record.identity,
        )

    async def inspect_promoted(
        self, source: str, dtype: str | None, identity: str, engine: str, ranks: int = 1
    ) -> ModelInfo | AdapterInfo:
        """What was brought up, which need not be a model.

        Raises:
            errors.SllmError: As `inspect`.
        """
        found = await self._store.inspect(source, dtype, fresh=False, identity=identity)
        if await _adapts(found):
            return _adapter_info(found)
        return await self.inspect(source, dtype, identity, engine, ranks=ranks)

    async def _try(
        self,
        source: str,
        dtype: str | None,
        identity: str,
        describe: Callable[[Path], Awaitable[Described]],
        *,
        on_disk: bool = False,
    ) -> tuple[Found, Described]:
        found = await self._store.inspect(source, dtype, identity=identity)
        if await _adapts(found):
            raise errors.UnsupportedModel(
                f"{source} is an adapter, not a model: deploy it over one (`base`), or merge it "
                "into one (merge_and_unload of peft, then save_pretrained) and deploy that"
            )
        if not on_disk:
            self._devices.check_fits(found.size_bytes)
        try:
            return found, await describe(found.directory)
        except errors.SllmError:
            if await asyncio.to_thread(found.directory.is_dir):
                raise
        # A copy that was found to be bad has been set aside while it was read.
        found = await self._store.inspect(source, dtype, identity=identity)
        return found, await describe(found.directory)

    async def _private(self, found: Found, tried: Described, ranks: int) -> PrivateMemory | None:
        """In a thread: mixtures of experts have many thousands of tensors."""
        if self._devices.infos():
            return None
        generates = tried.model.purpose.task is Task.GENERATE
        engine, vocabulary = tried.engine, tried.model.vocabulary if generates else 0
        copies = await asyncio.to_thread(private_memory, engine, found.tensors, vocabulary, ranks)
        return replace(copies, bytes=copies.bytes + tried.model.image_bytes)


def _list_tensors(found: Found, file: Path) -> None:
    forms = [(one.name, one.dtype, list(one.shape)) for one in found.tensors]
    file.write_text(json.dumps(forms))


async def _adapts(found: Found) -> bool:
    names = [tensor.name for tensor in found.tensors]
    return await asyncio.to_thread(is_adapter, found.directory, names)


def _adapter_info(found: Found) -> AdapterInfo:
    return AdapterInfo(found.size_bytes, found.digest or "", found.record.identity)
