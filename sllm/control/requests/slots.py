"""How the router uses instances: which have requests, and which are idle since when."""

from collections.abc import Mapping
from dataclasses import replace

from sllm.control.cluster.usage import Limit, Use
from sllm.control.requests.concurrency import Window
from sllm.decay import Decaying

HALF_LIFE_SECONDS = 600.0
"""A request counts half as much for its deployment after this time."""


class Slots:
    """Requests in flight by instance. Instances get requests from this control plane alone."""

    def __init__(self) -> None:
        self._uses: dict[str, Use] = {}
        self._tokens: dict[str, int] = {}
        self._claimed: dict[str, int] = {}
        """Slots that are held for requests on their way."""
        self._windows: dict[str, Window] = {}
        """What was seen of how fast tokens come."""
        self._requests: dict[str, Decaying] = {}
        """By deployment."""

    @property
    def uses(self) -> Mapping[str, Use]:
        """The present use of every known instance."""
        return self._uses

    def add(self, instance_id: str, node_id: str, now: float, *, asked_for: bool = False) -> None:
        """Takes in an instance that is ready; it is idle from now on.

        `asked_for`: it may have had requests that somebody waited for.
        """
        claimed = self._claimed.get(instance_id, 0)  # for requests that are to move here
        self._uses.setdefault(instance_id, Use(node_id, claimed, now, asked_for=asked_for))

    def take_background(self, instance_id: str) -> None:
        """Gives the instance one more of the requests that nobody waits for.

        They keep no instance for longer, and say nothing of how much it is asked for.
        """
        use = self._uses[instance_id]
        self._uses[instance_id] = replace(
            use, in_flight=use.in_flight + 1, background=use.background + 1
        )

    def take(self, instance_id: str, deployment: str, now: float) -> None:
        """Gives the instance one request more."""
        count = self._requests.get(deployment, Decaying()).plus_one(now, HALF_LIFE_SECONDS)
        self._requests[deployment] = count
        use = self._uses[instance_id]
        self._uses[instance_id] = replace(
            use,
            in_flight=use.in_flight + 1,
            last_used=now,
            demand=count.level(HALF_LIFE_SECONDS),
            asked_for=True,
        )

    def release_background(self, instance_id: str) -> bool:
        """Takes one of the requests away that nobody waits for; says whether it is idle now."""
        use = self._uses.get(instance_id)
        if use is None:
            return False
        self._uses[instance_id] = replace(
            use, in_flight=use.in_flight - 1, background=use.background - 1
        )
        return use.in_flight == 1

    def release(self, instance_id: str, now: float, keep_alive: float | None = None) -> bool:
        """Takes one of its requests away; says whether it is idle now.

        Args:
            instance_id: The instance.
            now: Clock's seconds.
            keep_alive: Seconds for which the request wants it to stay. None: no wish.
        """
        use = self._uses.get(instance_id)
        if use is None:
            return False
        kept = use.kept_until if keep_alive is None else max(use.kept_until, now + keep_alive)
        self._uses[instance_id] = replace(
            use, in_flight=use.in_flight - 1, last_used=now, kept_until=kept
        )
        return use.in_flight == 1

    def claim(self, instance_id: str) -> "Claim":
        """Holds a slot of an instance, which may still start, for requests on their way to it."""
        return Claim(self, instance_id)

    def hold(self, instance_id: str, change: int, now: float | None = None) -> None:
        """Changes how many slots are held for requests on their way."""
        count = self._claimed.pop(instance_id, 0) + change
        if count:
            self._claimed[instance_id] = count
        if use := self._uses.get(instance_id):
            used = use.last_used if now is None else now
            self._uses[instance_id] = replace(use, in_flight=use.in_flight + change, last_used=used)

    def limit(self, instance_id: str, limit: Limit | None) -> None:
        """Sets how many requests an instance should have at once. None: as its deployment says."""
        if use := self._uses.get(instance_id):
            self._uses[instance_id] = replace(use, limit=limit)

    def window(self, instance_id: str, now: float) -> Window:
        """What was seen of an instance since the last look; a new one if nothing was."""
        return self._windows.setdefault(instance_id, Window(now, []))

    def close_window(self, instance_id: str) -> None:
        """Has the next look see only what comes from now on."""
        self._windows.pop(instance_id, None)

    def forget(self, instance_id: str) -> None:
        """Drops an instance that is gone; requests that are still on it may be released later."""
        self._uses.pop(instance_id, None)
        self.close_window(instance_id)
        self._tokens.pop(instance_id, None)

    def forget_deployment(self, name: str) -> None:
        """Drops what is kept of a deployment that is no more."""
        self._requests.pop(name, None)

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
        """Holds `count` slots at least."""
        more = max(0, count - self._count)
        self._slots.hold(self._instance_id, more)
        self._count += more

    def release(self, now: float) -> None:
        """Gives all of them back."""
        self._slots.hold(self._instance_id, -self._count, now)
        self._count = 0
