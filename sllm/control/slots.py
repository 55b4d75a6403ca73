"""How the router uses instances: which have requests, and which are idle since when."""

from collections.abc import Mapping

from sllm.control.topology import Use


class Slots:
    """Requests in flight by instance. The router is the only one that gives instances requests."""

    def __init__(self) -> None:
        self._uses: dict[str, Use] = {}
        self._tokens: dict[str, int] = {}

    @property
    def uses(self) -> Mapping[str, Use]:
        """The present use of every known instance."""
        return self._uses

    def add(self, instance_id: str, node_id: str, now: float) -> None:
        """Makes an instance that is ready known; idle from now on."""
        self._uses.setdefault(instance_id, Use(node_id, 0, now))

    def take(self, instance_id: str, now: float) -> None:
        """Gives the instance one request more."""
        use = self._uses[instance_id]
        self._uses[instance_id] = Use(use.node_id, use.in_flight + 1, now)

    def release(self, instance_id: str, now: float) -> bool:
        """Takes one of its requests away; says whether it is idle now."""
        use = self._uses.get(instance_id)
        if use is None:
            return False
        self._uses[instance_id] = Use(use.node_id, use.in_flight - 1, now)
        return use.in_flight == 1

    def forget(self, instance_id: str) -> None:
        """Drops an instance that is gone; requests that are still on it may be released later."""
        self._uses.pop(instance_id, None)
        self._tokens.pop(instance_id, None)

    def count_tokens(self, instance_id: str, count: int) -> None:
        """Notes that as many tokens more have come from an instance."""
        if instance_id in self._uses:
            self._tokens[instance_id] = self._tokens.get(instance_id, 0) + count

    def tokens(self, instance_id: str) -> int:
        """How many tokens have come from an instance so far."""
        return self._tokens.get(instance_id, 0)
