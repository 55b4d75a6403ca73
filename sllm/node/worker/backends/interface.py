"""What a worker needs of an engine, whichever it is."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from sllm.embedding.purpose import Purpose
from sllm.node.worker.engine.encoder import Encoder
from sllm.node.worker.engine.group import ALONE, Group, Rank
from sllm.node.worker.engine.interface import Capacity, Engine
from sllm.node.worker.messages import ParserNames
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.parsing import Parsers
from sllm.node.worker.model.parts import Parts
from sllm.node.worker.model.seeing import ImageReader
from sllm.node.worker.ready_made.contents import ReadyMade, Weights


class Loaded(Protocol):
    """A model with its weights, which an engine can be made of."""

    def parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Those that lie where the agent holds the weights, each once."""
        ...

    def engine(self, capacity: Capacity) -> Engine:
        """An engine that has not been started."""
        ...

    def read_bytes(self) -> tuple[int, ...]:
        """Bytes of the weights that each rank has copied, once the engine has started.

        Empty where they are used as they lie.
        """
        ...

    def parts(self) -> Parts | None:
        """What the model consists of, each of which can wait for its weights. None: it cannot."""
        ...

    def encoder(self, purpose: Purpose, pass_tokens: int) -> Encoder:
        """The same for a model that embeds or scores, so many tokens in one pass.

        Raises:
            UnsupportedModel: The engine runs none.
        """
        ...


class Backend(Protocol):
    """An engine, as workers, trials and zygotes know it."""

    @property
    def name(self) -> str:
        """As deployments have it."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens in a page of its KV cache."""
        ...

    @property
    def whole_pages(self) -> bool:
        """Whether a request may have no more tokens than whole pages hold."""
        ...

    @property
    def versions(self) -> tuple[str, ...]:
        """Of the libraries that decide what tokens it gives."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Refuses what it is known not to run; gets what the model's class takes, if that is new.

        Raises:
            UnsupportedModel: Says why.
        """
        ...

    def check_ranks(self, architecture: Architecture, ranks: int) -> None:
        """Refuses what cannot be divided among so many processes.

        Raises:
            UnsupportedModel: With the numbers.
        """
        ...

    def check_adapters(self, architecture: Architecture) -> None:
        """Refuses what it runs, but not with adapters.

        Raises:
            UnsupportedModel: Says why.
        """
        ...

    def engine_over(self, model: Any, capacity: Capacity) -> AbstractContextManager[Engine]:
        """An engine over a small model of transformers, to be started before the context ends.

        Args:
            model: on the CPU. It is not used afterwards.
            capacity: of the engine.
        """
        ...

    def load(
        self, files: ModelFiles, weights: Weights, *, on_device: bool, group: Group = ALONE
    ) -> Loaded:
        """Brings a model and its weights together.

        Args:
            files: the model's.
            weights: the model's; ready-made ones are of this engine, and this rank's part.
            on_device: whether they lie on an accelerator, and not in the pool.
            group: the processes that run it, of which this is the first.

        Raises:
            UnsupportedModel: The weights are not those of the model.
        """
        ...

    def follow(
        self,
        directory: Path,
        config: Any,
        weights: Weights,
        capacity: Capacity,
        pipe: Connection,
        rank: Rank,
    ) -> None:
        """Runs one of the other ranks of a model; returns when the first lets go of the pipe.

        Args:
            directory: has the model's `config.json`.
            config: that, read.
            weights: all of the model's, of which the rank takes its part.
            capacity: of the engine.
            pipe: to the first rank.
            rank: which one this is.

        Raises:
            UnsupportedModel: The weights are not those of the model.
        """
        ...

    def make_ready(
        self, files: ModelFiles, weights: Mapping[str, torch.Tensor], group: Group = ALONE
    ) -> ReadyMade:
        """The weights as this engine's kernels read them, in memory of their own.

        The process is of no use afterwards but for writing them.

        Args:
            files: the model's.
            weights: by their names in the checkpoint, on the CPU.
            group: the processes that run the model, of which this is the first: its part is made.

        Raises:
            UnsupportedModel: The weights are not those of the model, or are not kept in this way.
        """
        ...

    def make_ready_part(
        self, directory: Path, config: Any, weights: Mapping[str, torch.Tensor], rank: Rank
    ) -> ReadyMade:
        """As `make_ready`, in one of the other ranks.

        Args:
            directory: has the model's `config.json`.
            config: that, read.
            weights: all of the model's, of which the rank takes its part.
            rank: which one this is.

        Raises:
            UnsupportedModel: As `make_ready`.
        """
        ...

    def parsers(self, names: ParserNames, tokenizer: Any) -> Parsers | None:
        """What takes answers in conversations apart. None: nothing does.

        Args:
            names: of what is to do it.
            tokenizer: the model's, from transformers.

        Raises:
            UnsupportedModel: There is no such parser, or it has no use for the tokenizer.
        """
        ...

    def images(self, files: ModelFiles, dtype: str) -> ImageReader | None:
        """What reads the images of a model's prompts. None: it sees none.

        Args:
            files: the model's.
            dtype: name of the torch dtype in which it is run.

        Raises:
            UnsupportedModel: Its files are of no use for that.
        """
        ...

    def rehearse(self) -> None:
        """Does in a zygote what every start would do anew, and leaves no thread of its own.

        Raises:
            RuntimeError: The engine does not work here.
        """
        ...
