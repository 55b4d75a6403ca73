"""What nodes say that chunks are, where nothing proves it: a pure core.

They are believed as long as they agree. What they do not agree on is read from the source, and who
has said something else of it than the source gives is believed nothing any more.
"""

from collections.abc import Collection, Mapping


class Words:
    """By chunk, counted over all partitions. Belongs to whoever holds its lock."""

    def __init__(self) -> None:
        self._said: dict[int, dict[str, str]] = {}
        """By name: digests, as last told."""
        self._read: dict[int, str] = {}
        """Of what the source has given."""
        self._liars: set[str] = set()

    def hear(self, name: str, said: Mapping[int, str]) -> str:
        """Takes in what a node says; what is wrong with it, or nothing.

        Args:
            name: the node's.
            said: digests by chunk. Empty: it does not tell.
        """
        for chunk, digest in said.items():
            if name not in self._liars and digest:
                if self._read.get(chunk, digest) != digest:
                    self._forget(name)
                    return f"chunk {chunk} is not what it says, but what the source gives"
                self._said.setdefault(chunk, {})[name] = digest
        return ""

    def read(self, chunk: int, digest: str) -> Collection[str]:
        """Takes in what the source gives; names those that have said something else."""
        self._read[chunk] = digest
        liars = {name for name, said in self._said.get(chunk, {}).items() if said != digest}
        for name in liars:
            self._forget(name)
        return liars

    def of(self, chunk: int) -> str | None:
        """The digest that a chunk must have. None: nobody is to be believed."""
        found = self._digests(chunk)
        return found.pop() if len(found) == 1 else None

    def is_disputed(self, chunk: int) -> bool:
        """Whether only the source can tell what a chunk is."""
        return len(self._digests(chunk)) > 1

    def _digests(self, chunk: int) -> set[str]:
        if chunk in self._read:
            return {self._read[chunk]}
        return set(self._said.get(chunk, {}).values())

    def _forget(self, name: str) -> None:
        self._liars.add(name)
        for said in self._said.values():
            said.pop(name, None)
