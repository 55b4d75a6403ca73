"""What a contender is: something that loads a model, and how it is measured."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.loading.models import Model

Tensors = dict[str, torch.Tensor]


def nothing() -> None:
    """Where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Load:
    """One way to load one model."""

    run: Callable[[], Tensors]
    """What is timed. Bytes that are resident already need not be returned as tensors."""
    before: Callable[[], object] = nothing
    """Called before the clock starts."""
    after: Callable[[], object] = nothing
    """Called after it has stopped, and the tensors are gone."""
    in_page_cache: bool = False
    """Whether tensors may stay views of files: then their pages are touched, not copied."""


Prepare = Callable[[Model], AbstractContextManager[Mapping[str, Load]]]


@dataclass(frozen=True, slots=True)
class Group:
    """Contenders that share a process, by name."""

    names: tuple[str, ...]
    prepare: Prepare
    """Gives one load for each name."""
    files: Callable[[Model, str], list[Path]]
    """What one of them reads."""
    library: str = "torch"
    """What must be importable."""
    lasting: bool = False
    """Whether the process stays for all rounds, as a node does; otherwise each load has its own."""
    repeats: int = 1
    """Times that each of them loads in a round."""
    fits: Callable[[Model], bool] = lambda model: True
    """Whether they can load the model."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load."""

    call_seconds: float
    """Until the call came back."""
    seconds: float
    """Until every byte was resident."""
    cpu_seconds: float
    """Of all threads of the process."""
    peak_bytes: int
    """Resident memory at its highest, over that before the process prepared for the model."""
    faults: int
    """Page faults."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A contender that did not run."""

    reason: str


Outcome = Measurement | Skipped
