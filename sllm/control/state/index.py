"""A mapping that changes, with cheap copies that do not."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class Index(Mapping[str, Value]):
    """Copies are shared until the next change: many decisions fall between two changes."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._frozen: Mapping[str, Value] | None = None

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: str, value: Value) -> None:
        """Sets the value of a key."""
        self._values[key] = value
        self._frozen = None

    def drop(self, key: str) -> None:
        """Takes a key out; one that is not there is no error."""
        self._values.pop(key, None)
        self._frozen = None

    @property
    def frozen(self) -> Mapping[str, Value]:
        """A copy as of now."""
        if self._frozen is None:
            self._frozen = dict(self._values)
        return self._frozen
