"""Fields of other protocols: served, without effect here, or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, TypeVar

from pydantic import AliasChoices, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from sllm.gateway.bodies import REFUSED, Fields
from sllm.gateway.failures import invalid

T = TypeVar("T")
MOST_ITEMS: Final = 1_000_000
"""Of a list: more tokens than any context has."""
MOST_TEXTS: Final = 2048

Listed = Annotated[list[T], Field(fail_fast=True, max_length=MOST_ITEMS)]
"""A list of bounded length, of which the first wrong item is told, and no other is looked at."""


def _form(given: Any) -> str:
    """Which of the forms of `Prompts` is meant, by the first item."""
    if not isinstance(given, list):
        return "text"
    first = given[0] if given else None
    if isinstance(first, str):
        return "texts"
    return "prompts" if isinstance(first, list) else "tokens"


_Texts = Annotated[list[str], Field(fail_fast=True, max_length=MOST_TEXTS)]
_Several = Annotated[list[Listed[int]], Field(fail_fast=True, max_length=MOST_TEXTS)]
Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[_Texts, Tag("texts")]
    | Annotated[Listed[int], Tag("tokens")]
    | Annotated[_Several, Tag("prompts")],
    Discriminator(_form),
]
"""A text, tokens, or several of either. Each form alone is looked at that is meant."""


_TOLD: Final = 100
"""Letters of a name that an error repeats."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that cannot be served."""

    why: str
    """And what to do instead."""
    neutral: tuple[Any, ...] = ()
    """Values that ask for nothing, beside null."""


class ForeignFields(Fields):
    """Those of a request of another protocol: its model declares what is served."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    REFUSED: ClassVar[Mapping[str, Refused]] = {}
    HARMLESS: ClassVar[Mapping[str, str]] = {}
    """Fields that are taken and change nothing, and why that does no harm."""

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, given: Any) -> Any:
        """Leaves what is served."""
        if not isinstance(given, dict):
            return given
        for name, refused in cls.REFUSED.items():
            value = given.get(name)
            if value is not None and not any(_same(value, one) for one in refused.neutral):
                told = {"name": name, "why": refused.why}
                raise PydanticCustomError(REFUSED, "is not served: {why}", told)
        left = {*cls.REFUSED, *cls.HARMLESS}
        found = {name: value for name, value in given.items() if name not in left}
        if unknown := found.keys() - cls._names():  # one is enough to be told of
            told = {"name": min(unknown)[:_TOLD]}
            raise PydanticCustomError(REFUSED, "there is no such field", told)
        return found

    @classmethod
    def _names(cls) -> set[str]:
        found = set(cls.model_fields)
        for field in cls.model_fields.values():
            if isinstance(field.validation_alias, AliasChoices):
                found |= {one for one in field.validation_alias.choices if isinstance(one, str)}
        return found


def only(given: Any, where: str, *names: str) -> Mapping[str, Any]:
    """An object within a request, with no other fields than these.

    Raises:
        errors.InvalidArgument: It is none, or has others that ask for something.
    """
    if not isinstance(given, Mapping):
        raise invalid(f"{where} must be an object, not {type(given).__name__}", where)
    for name, value in given.items():
        if name not in names and value is not None:
            place = f"{where}.{name[:_TOLD]}"
            raise invalid(f"{place} is not served", place)
    return given


def _same(value: object, other: object) -> bool:
    """Equal, and of one type: 0 is not False."""
    return type(value) is type(other) and value == other
