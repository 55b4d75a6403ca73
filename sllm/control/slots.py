"""How the router uses instances: which have requests, and which are idle since when."""

from collections.abc import Mapping

from sllm.control.topology import Use


class Slots:
    """Requests in flight by instance. The router is the only one that gives instances requests."""

    def __init__(self) -> None:
        self._uses: dict[str, Use] = {}
        self._tokens: dict[str, int] = {}
        self._claimed: dict[str, int] = {}
        """Slots that are held for requests on their way."""

    @property
    def uses(self) -> Mapping[str, Use]:
        """The present use of every known instance."""
        return self._uses

    def add(self, instance_id: str, node_id: str, now: float) -> None:
        """Makes an instance that is ready known; idle from now on."""
        claimed = self._claimed.get(instance_id, 0)
        self._uses.setdefault(instance_id, Use(node_id, claimed, now))

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

    def claim(self, instance_id: str) -> "Claim":
        """Holds a slot for requests that are on their way; of an instance that may still start."""
        return Claim(self, instance_id)

    def hold(self, instance_id: str, change: int, now: float | None = None) -> None:
        """Changes how many slots are held for requests on their way."""
        count = self._claimed.pop(instance_id, 0) + change
        if count:
            self._claimed[instance_id] = count
        if use := self._uses.get(instance_id):
            used = use.last_used if now is None else now
            self._uses[instance_id] = Use(use.node_id, use.in_flight + change, used)

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


class Claim:
    """Slots of one instance, held for requests that are on their way to it."""

    def __init__(self, slots: Slots, instance_id: str) -> None:
        self._slots = slots
        self._instance_id = instance_id
        self._count = 0
        self.grow_to(1)

    def grow_to(self, count: int) -> None:
        """Holds as many, if it has held fewer."""
        more = max(0, count - self._count)
        self._slots.hold(self._instance_id, more)
        self._count += more

    def release(self, now: float) -> None:
        """Gives all of them back."""
        self._slots.hold(self._instance_id, -self._count, now)
        self._count = 0
