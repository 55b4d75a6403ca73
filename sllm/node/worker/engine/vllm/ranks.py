"""A model on several ranks: the first runs the engine, and the others do what it does.

It is vLLM's worker that each of them runs, on its part of the weights. What the first has them do
goes through a pipe to each.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from sllm.errors import WorkerDied, make_error
from sllm.node.worker.engine.group import Group
from sllm.node.worker.engine.vllm.groups import process_group


@dataclass(frozen=True, slots=True)
class Call:
    """First rank -> another: of a method of vLLM's worker."""

    method: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answered: bool
    """Whether the rank is to send what the method gives."""


@dataclass(frozen=True, slots=True)
class Begin:
    """First rank -> another: the engine has been made. From now on there are steps."""


@dataclass(frozen=True, slots=True)
class Filled:
    """Another rank -> first: it has its part of the weights."""

    read_bytes: int
    """Of the weights, where they lie."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Another rank -> first: why it cannot do its part, in place of an answer."""

    code: int
    """Of the error."""
    reason: str
    message: str


def send(pipe: Connection, message: object) -> None:
    """Tells another rank something.

    Raises:
        WorkerDied: It has ended.
    """
    try:
        pipe.send(message)
    except OSError as error:
        raise WorkerDied(f"a process that runs the model has ended: {error}") from error


def receive(pipe: Connection) -> Any:
    """What another rank tells.

    Raises:
        WorkerDied: It has ended.
        SllmError: It cannot do its part.
    """
    try:
        message = pipe.recv()
    except (EOFError, OSError) as error:
        raise WorkerDied("a process that runs the model has ended") from error
    if isinstance(message, Failed):
        raise make_error(message.code, message.reason, message.message)
    return message


def executor_of(group: Group, on_filled: Callable[[Filled], None]) -> type[Any]:
    """A class of vLLM's executors for one engine, which has all ranks do what the first does.

    `on_filled` is called for each of the others once it has its weights.
    """

    class RankedExecutor(UniProcExecutor):  # type: ignore[misc]  # untyped library
        """Runs the first rank in this process, and has the others follow."""

        def _init_executor(self) -> None:
            with heeding(group):
                with process_group(group.rank):
                    super()._init_executor()
                for pipe in group.others:
                    on_filled(receive(pipe))

        def _distributed_args(self) -> tuple[str, int, int]:
            if torch.distributed.is_initialized():
                return "", 0, 0
            args: tuple[str, int, int] = super()._distributed_args()
            return args

        def collective_rpc(
            self,
            method: str | Callable[..., Any],
            timeout: float | None = None,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
            non_block: bool = False,
            single_value: bool = False,
        ) -> Any:
            """What all ranks give; of the first alone with `single_value`."""
            call = Call(method, args, kwargs or {}, answered=not single_value)
            with heeding(group):
                for pipe in group.others:
                    send(pipe, call)
                own = super().collective_rpc(method, timeout, args, kwargs, non_block, single_value)
                if single_value or not group.others:
                    return own
                values = own.result() if isinstance(own, Future) else own
                values = [*values, *(receive(pipe) for pipe in group.others)]
                return _done(values) if non_block else values

    return RankedExecutor


def begin(group: Group) -> None:
    """Tells the other ranks that the engine has been made."""
    for pipe in group.others:
        send(pipe, Begin())


@contextmanager
def heeding(group: Group) -> Iterator[None]:
    """What another rank has told of its failure says more than that it does not go on."""
    try:
        yield
    except WorkerDied:
        for pipe in group.others:
            with suppress(WorkerDied):
                while pipe.poll():
                    receive(pipe)
        raise


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future
