"""What a model is for: to generate text, or to make vectors or scores of whole texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from sllm.errors import InvalidArgument, NotServed

PASS_TOKENS: Final = 4096
"""Of all texts in one pass of a model that embeds or scores, padding included, where memory was set
aside for so many; a single text may have more."""


class Task(StrEnum):
    """What a model does with a text."""

    GENERATE = "generate"
    """It goes on with it."""
    EMBED = "embed"
    """It makes a vector of it."""
    SCORE = "score"
    """It makes a number for each of its labels."""


class Pooling(StrEnum):
    """How one vector is made of those of a text's tokens."""

    MEAN = "mean"
    CLS = "cls"
    """The first one."""
    LAST = "last"
    MAX = "max"
    """Of each number the greatest."""


class Activation(StrEnum):
    """What a model's own numbers become scores by."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"


_CALLS: Final = {
    Task.GENERATE: "it generates text: call Generate",
    Task.EMBED: "it embeds: call Embed, or Score",
    Task.SCORE: "it scores: call Score",
}


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a model is for, and what callers have to know of it for that."""

    task: Task = Task.GENERATE
    dimensions: int = 0
    """Numbers in a vector. 0: it makes none."""
    pooling: str = ""
    """One of `Pooling`. Empty: it makes no vectors."""
    normalizes: bool = False
    """Whether its vectors have the length 1 unless asked otherwise."""
    matryoshka: bool = False
    """Whether the first numbers of its vectors serve as shorter vectors."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """How many these may be. Empty: any number of them."""
    labels: tuple[str, ...] = ()
    """What its scores are for. Empty: it makes none of its own."""
    activation: str = ""
    """One of `Activation`. Empty: the same."""
    takes_images: bool = False
    """Whether conversations with it may have images."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields of one, as JSON keeps them."""
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists, "task": Task(fields["task"])})

    def check_serves(self, task: Task, deployment: str) -> None:
        """Makes sure that the model does what is asked. One that embeds scores as well.

        Raises:
            NotServed: It does not; says what it does.
        """
        if task is self.task or (self.task is Task.EMBED and task is Task.SCORE):
            return
        raise NotServed(f"{deployment} does not {task}; {_CALLS[self.task]}")

    def check_sees(self, deployment: str) -> None:
        """Makes sure that the model sees images.

        Raises:
            NotServed: It does not.
        """
        if not self.takes_images:
            raise NotServed(
                f"{deployment} takes text alone: its model does not see images, or its engine does "
                "not show it any; a model that does is deployed with engine 'vllm'"
            )

    def check_dimensions(self, asked: int) -> None:
        """Makes sure that vectors may be cut to so many numbers.

        Raises:
            InvalidArgument: They may not; says which may be had.
        """
        may_be = self.matryoshka_dimensions
        if asked == self.dimensions or (
            self.matryoshka and 0 < asked <= self.dimensions and (not may_be or asked in may_be)
        ):
            return
        some = f"{', '.join(map(str, may_be))}" if may_be else f"any number up to {self.dimensions}"
        had = some if self.matryoshka else f"{self.dimensions} alone: it was not made to be cut"
        raise InvalidArgument(f"dimensions is {asked}; the model's vectors can have {had}")


GENERATES: Final = Purpose()
