"""A model whose experts are read from disk as it uses them, exact whatever is in memory.

Its parameters are at the addresses that they would have if all were there: the same kernels compute
with them. What is not there is out of reach, and a layer begins once what it uses is.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sllm.checkpoint.format.experts import expert_layer
from sllm.checkpoint.format.layout import apart_bytes
from sllm.checkpoint.format.manifest import PartitionEntry, TensorEntry
from sllm.checkpoint.reading.tensors import tensors_within
from sllm.config import format_bytes
from sllm.errors import CheckpointCorrupt, NoCapacity, UnsupportedModel
from sllm.node.worker.experts.cache import READ_THREADS, ExpertCache, ExpertCounts
from sllm.node.worker.experts.foresight import Foresight
from sllm.node.worker.experts.keeping import ByUse, Keeping, Numbers
from sllm.node.worker.experts.memory import Span, SparseMemory, pages_bytes
from sllm.node.worker.experts.modules import ExpertLayer, expert_layers
from sllm.node.worker.experts.reading import CheckedReader, by_chunk


@dataclass(frozen=True, slots=True)
class WeightsOnDisk:
    """A checkpoint whose experts stay on disk."""

    directory: Path
    """Of its partitions."""
    partitions: tuple[PartitionEntry, ...]
    tensors: tuple[TensorEntry, ...]
    expert_bytes: int
    """Memory that experts may take together."""


class OnDemand:
    """What is used at any time, in memory; then the experts, as they are used."""

    def __init__(self, weights: WeightsOnDisk) -> None:
        """Takes addresses, and opens the files.

        Raises:
            UnsupportedModel: It has no experts, or they do not lie as they are used.
            CheckpointCorrupt: A file is not there.
            CheckpointUnreadable: One cannot be opened now.
        """
        _check_experts(weights.tensors)
        self._weights = weights
        self.memory = SparseMemory([entry.size for entry in weights.partitions])
        self._reader = CheckedReader(weights.directory, weights.partitions, self.memory.address_of)
        self._cache: ExpertCache | None = None

    @property
    def counts(self) -> ExpertCounts:
        """What has become of what steps have asked for."""
        return self._cache.counts if self._cache else ExpertCounts()

    @property
    def corrupt(self) -> CheckpointCorrupt | None:
        """What was found of an expert that is not what was written. None: nothing was."""
        failure = self._cache.failure if self._cache else None
        return failure if isinstance(failure, CheckpointCorrupt) else None

    def read_resident(self) -> int:
        """Reads what is used at any time; gives its bytes.

        Raises:
            CheckpointCorrupt: It is not what was written.
            CheckpointUnreadable: It cannot be read now.
        """
        parts = by_chunk(self._resident, self._weights.partitions)
        with ThreadPoolExecutor(READ_THREADS, "resident-read") as threads:
            list(threads.map(self._reader.bring, parts.values()))
        return sum(span.end - span.begin for span in self._resident)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of the checkpoint, by name; experts are zero as yet."""
        memory = [
            torch.frombuffer(self.memory.buffer(index), dtype=torch.uint8)
            for index in range(len(self._weights.partitions))
        ]
        return tensors_within(self._weights.tensors, memory)

    def begin(
        self, model: torch.nn.Module, keeping: Keeping | None = None, *, ahead: bool = True
    ) -> None:
        """Stands before the layers of a model over these tensors, which has not run.

        Args:
            model: whose experts they are.
            keeping: says which experts stay. None: those that are used most.
            ahead: whether what the next layer will use is read while one computes.

        Raises:
            UnsupportedModel: The model does not use experts as they lie.
            NoCapacity: They may not even have the memory that one layer takes.
        """
        layers = expert_layers(model, self.memory)
        experts = [spans for layer in layers for spans in layer.spans]
        self._check_whole(experts)
        sizes = [sum(map(pages_bytes, spans)) for spans in experts]
        self._check_budget(layers)
        self.memory.seal(self._resident, (span for spans in experts for span in spans))
        counts = [len(layer.spans) for layer in layers]
        keeping = keeping or ByUse(counts)
        foresight = Foresight([layer.router for layer in layers], counts) if ahead else None
        cache = self._cache = ExpertCache(
            sizes,
            self._weights.expert_bytes,
            keeping,
            bring=lambda number, gone: self._bring(
                experts[number], [span for one in gone for span in experts[one]]
            ),
        )
        first = 0
        for index, layer in enumerate(layers):
            _Gate(cache, keeping, foresight, layer, index, first)
            first += len(layer.spans)

    def close(self) -> None:
        """Ends a step that waits for experts. What is there stays for as long as tensors do."""
        if self._cache is None or self._cache.close():
            self._reader.close()

    def _bring(self, spans: Sequence[Span], gone: Sequence[Span]) -> None:
        self.memory.exchange(gone, spans)
        for parts in by_chunk(spans, self._weights.partitions).values():
            self._reader.bring(parts)

    @property
    def _resident(self) -> list[Span]:
        return _merged(one for one in self._weights.tensors if not expert_layer(one))

    def _check_whole(self, experts: Sequence[Sequence[Span]]) -> None:
        """Makes sure that nothing else uses what is out of reach."""
        of_names = _merged(one for one in self._weights.tensors if expert_layer(one))
        if _joined(span for spans in experts for span in spans) != of_names:
            raise UnsupportedModel(
                "the model does not use its experts as they lie in the checkpoint, or not one by "
                "one: deploy it without expert_memory"
            )

    def _check_budget(self, layers: Sequence[ExpertLayer]) -> None:
        most = max(
            sum(pages_bytes(span) for one in layer.spans for span in one) for layer in layers
        )
        if most > self._weights.expert_bytes:
            raise NoCapacity(
                f"expert_memory is {format_bytes(self._weights.expert_bytes)}, and the experts of "
                f"one layer, each of which a prompt may use, take {format_bytes(most)}"
            )


class _Gate:
    """Stands before the experts of a layer. Belongs to the engine's thread."""

    def __init__(
        self,
        cache: ExpertCache,
        keeping: Keeping,
        foresight: Foresight | None,
        layer: ExpertLayer,
        index: int,
        first: int,
    ) -> None:
        self._cache = cache
        self._keeping = keeping
        self._foresight = foresight
        self._layer = layer
        self._index = index
        self._first = first
        layer.module.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen = self._layer.chosen(args, kwargs).numpy()
        self._keeping.used(self._index, chosen)
        self._cache.need((np.unique(chosen) + self._first).tolist())
        hidden = self._layer.hidden(args, kwargs)
        if self._foresight and hidden is not None:
            self._look_ahead(self._foresight, hidden, chosen)

    def _look_ahead(self, foresight: Foresight, hidden: torch.Tensor, chosen: Numbers) -> None:
        foresight.came(self._index, chosen)
        if guess := foresight.next(self._index, hidden, chosen.shape[1]):
            self._cache.read_ahead(guess)


def _check_experts(tensors: Sequence[TensorEntry]) -> None:
    if not any(map(expert_layer, tensors)):
        raise UnsupportedModel(
            "the model is no mixture of experts: deploy it without expert_memory"
        )
    if apart := apart_bytes(tensors):
        raise UnsupportedModel(
            f"{format_bytes(apart)} of experts do not lie as they are used: import the checkpoint "
            "anew, or deploy it without expert_memory"
        )


def _merged(tensors: Iterable[TensorEntry]) -> list[Span]:
    found = (Span(one.partition, one.offset, one.offset + one.size) for one in tensors if one.size)
    return _joined(found)


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The same bytes, neighbours in one span."""
    joined: list[Span] = []
    for span in sorted(spans):
        last = joined[-1] if joined else None
        if last and last.partition == span.partition and span.begin <= last.end:
            joined[-1] = last._replace(end=max(last.end, span.end))
        else:
            joined.append(span)
    return joined
