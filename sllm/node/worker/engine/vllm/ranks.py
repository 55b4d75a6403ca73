"""A model on several ranks: the first runs the engine, and the others do what it does.

It is vLLM's worker that each of them runs, on its part of the weights. What the first has them do
goes through a pipe to each.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch.distributed
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from sllm.errors import make_error
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
    """Another rank -> first: it has its part of the weights, or none for a reason."""

    read_bytes: int = 0
    """Of the weights, where they lie."""
    code: int = 0
    """Of the error. 0: it has them."""
    reason: str = ""
    message: str = ""


def executor_of(group: Group, on_filled: Callable[[Filled], None]) -> type[Any]:
    """A class of vLLM's executors for one engine, which has all ranks do what the first does.

    `on_filled` is called for each of the others once it has its weights.
    """

    class RankedExecutor(UniProcExecutor):  # type: ignore[misc]  # untyped library
        """Runs the first rank in this process, and has the others follow."""

        def _init_executor(self) -> None:
            with process_group(group.rank):
                super()._init_executor()
            for pipe in group.others:
                on_filled(_checked(pipe.recv()))

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
            for pipe in group.others:
                pipe.send(call)
            own = super().collective_rpc(method, timeout, args, kwargs, non_block, single_value)
            if single_value or not group.others:
                return own
            values = own.result() if isinstance(own, Future) else own
            values = [*values, *(pipe.recv() for pipe in group.others)]
            return _done(values) if non_block else values

    return RankedExecutor


def begin(group: Group) -> None:
    """Tells the other ranks that the engine has been made."""
    for pipe in group.others:
        pipe.send(Begin())


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _checked(answer: Filled) -> Filled:
    if answer.code:
        raise make_error(answer.code, answer.reason, answer.message)
    return answer
