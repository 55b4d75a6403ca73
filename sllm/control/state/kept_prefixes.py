"""Which nodes keep what was computed of which prompts, by what these begin with."""

from collections.abc import Iterable, Mapping, Sequence


class KeptPrefixes:
    """As nodes tell it, who choose what they keep. Belongs to the event loop."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[int, float]] = {}
        self._by_name: dict[int, dict[str, float]] = {}

    def replace(self, node_id: str, kept: Mapping[int, float]) -> None:
        """Takes in all that a node keeps: by name, the seconds that it saves."""
        self.forget(node_id)
        self.change(node_id, kept, ())

    def change(self, node_id: str, kept: Mapping[int, float], gone: Iterable[int]) -> None:
        """Takes in what is new or has changed, and what a node keeps no more."""
        known = self._by_node.setdefault(node_id, {})
        for name in gone:
            if known.pop(name, None) is not None:
                self._drop(node_id, name)
        known.update(kept)
        for name, seconds in kept.items():
            self._by_name.setdefault(name, {})[node_id] = seconds

    def forget(self, node_id: str) -> None:
        """A node is there no more."""
        for name in self._by_node.pop(node_id, {}):
            self._drop(node_id, name)

    def saved(self, names: Sequence[int]) -> dict[str, float]:
        """The seconds that nodes save a prompt; `names`: of what it begins with, shortest first.

        Each by the longest that it keeps.
        """
        if not self._by_name:
            return {}
        found: dict[str, float] = {}
        for name in names:
            found |= self._by_name.get(name, {})
        return found

    def saved_on_average(self, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
        """The same over several prompts."""
        if not self._by_name:
            return {}
        total: dict[str, float] = {}
        for names in prompts:
            for node_id, seconds in self.saved(names).items():
                total[node_id] = total.get(node_id, 0.0) + seconds / len(prompts)
        return total

    def _drop(self, node_id: str, name: int) -> None:
        nodes = self._by_name[name]
        del nodes[node_id]
        if not nodes:
            del self._by_name[name]

    def check_integrity(self) -> None:
        """Raises AssertionError if the two ways to look at it differ."""
        by_node = {(node, name) for node, names in self._by_node.items() for name in names}
        by_name = {(node, name) for name, nodes in self._by_name.items() for node in nodes}
        assert by_node == by_name, "what nodes keep and who keeps it differ"
