"""Fields of other protocols: served, without effect here, or refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from sllm.gateway.bodies import REFUSED, Fields


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
        return {name: value for name, value in given.items() if name not in left}


def _same(value: object, other: object) -> bool:
    """Equal, and of one type: 0 is not False."""
    return type(value) is type(other) and value == other
