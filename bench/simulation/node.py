"""A simulated server: its pool, its links and its GPUs, reported as a node agent reports them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from bench.simulation.afar import Afar
from bench.simulation.hardware import Model, Server
from sllm import errors
from sllm.clock import ManualClock
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.tiers import Copy, Link, LinkKey, Tier, TierUsage
from sllm.node.tiers.ledger import Holding, Ledger
from sllm.node.tiers.types import Tier as NodeTier


@dataclass(slots=True)
class Pooled:
    """A checkpoint in the pool, or on its way there."""

    size_bytes: int
    complete_at: float
    """Clock's seconds at which all of it has been read."""
    bytes_per_second: float = 0.0
    """At which it comes."""
    holding: Holding | None = None
    """Its share of the pool. None: there is no room for it, and it passes through."""


@dataclass(frozen=True, slots=True)
class Load:
    """A model on its way to a GPU."""

    digest: str
    ready_at: float
    """Clock's seconds."""
    from_tier: Tier
    pooled: Pooled


class SimulatedNode:
    """Checkpoints cross its links at full speed; those that need the SSD, one after the other.

    What the pool evicts is the real ledger's choice. What finds no room there passes through, as in
    the real store. Every GPU has lanes of its own to the pool.
    """

    def __init__(
        self,
        node_id: str,
        server: Server,
        models: Mapping[str, Model],
        on_ssd: Collection[str] | None = None,
        zone: str = "",
        afar: Afar | None = None,
    ) -> None:
        """Its pool is empty.

        Args:
            node_id: Unique in the cluster.
            server: Its hardware.
            models: All that there are, by digest.
            on_ssd: Digests of those that its SSD holds; the others are far away. None: all.
            zone: Where it is. Empty: nobody says.
            afar: Where other models come from. None: a store that has them as fast as the link.
        """
        self.zone = zone
        self.node_id = node_id
        self.server = server
        self.gpus_used = 0
        self._models = models
        self._afar = afar or Afar()
        self._afar.join({node_id: self.holds})
        self._clock = ManualClock()
        self._ledger = Ledger(NodeTier.DRAM, server.dram_bytes, self._clock)
        self._ledger.reload_seconds = self._reload_seconds
        self._pool: dict[str, Pooled] = {}
        self._ssd_free_at = 0.0
        self._remote_free_at = 0.0
        self._reported: dict[str, Copy] = {}
        self._on_ssd = set(models if on_ssd is None else on_ssd)

    # --- what is done to it -------------------------------------------------------------------

    def take_gpus(self, count: int) -> None:
        """Gives GPUs to an instance."""
        self.gpus_used += count
        assert self.gpus_used <= self.server.gpus, f"{self.node_id} has no GPU left"

    def release_gpus(self, count: int) -> None:
        """Takes them back."""
        self.gpus_used -= count
        assert self.gpus_used >= 0, f"{self.node_id} has more GPUs than it was given"

    def begin_load(self, digest: str, now: float) -> Load:
        """Begins to bring a model to a GPU, and says when it will be there."""
        size = self._models[digest].size_bytes
        self._clock.advance(now - self._clock.now())
        pooled = self._pool.get(digest)
        if pooled is None:
            pooled = self._read(digest, size, now)
        else:
            self._ledger.touch(digest)
        if pooled.holding:
            pooled.holding.leases += 1
        copied_at = max(now + size / self.server.pcie_bytes_per_second, pooled.complete_at)
        from_tier = Tier.DRAM if pooled.complete_at <= now else Tier.SSD
        return Load(digest, copied_at + self.server.init_seconds, from_tier, pooled)

    def end_load(self, load: Load) -> None:
        """The GPU has it, and the pool may evict its copy from now on."""
        if load.pooled.holding:
            load.pooled.holding.leases -= 1

    def holds(self, digest: str, now: float) -> bool:
        """Whether others can have all of a model from it."""
        pooled = self._pool.get(digest)
        return digest in self._on_ssd or bool(pooled and pooled.complete_at <= now)

    def wanted_for(self, digest: str, seconds: float, now: float) -> None:
        """Has a checkpoint leave the pool before others after this time."""
        self._clock.advance(now - self._clock.now())
        self._ledger.wanted_for(digest, seconds)

    def fill_pool(self, digests: Iterable[str]) -> None:
        """Has the pool hold these from the start, as far as there is room."""
        for digest in digests:
            size = self._models[digest].size_bytes
            if self._ledger.used + size <= self.server.dram_bytes:
                self._pool[digest] = Pooled(size, 0.0, holding=self._ledger.add(digest, size))

    def _read(self, digest: str, size: int, now: float) -> Pooled:
        """From SSD, or from afar by way of it: the slower link decides."""
        if digest in self._on_ssd:
            begin, bandwidth = max(now, self._ssd_free_at), self.server.ssd_bytes_per_second
            complete_at = self._ssd_free_at = begin + size / bandwidth
        else:
            begin, rate = max(now, self._remote_free_at), self.server.remote_bytes_per_second
            complete_at = self._afar.complete_at(self.node_id, digest, size, begin, rate)
            self._remote_free_at = complete_at
            bandwidth = size / (complete_at - begin)
        pooled = Pooled(size, complete_at, bandwidth)
        if self._make_room(size):
            self._pool[digest] = pooled
            pooled.holding = self._ledger.add(digest, size)
        return pooled

    def _reload_seconds(self, digest: str, size: int) -> float:
        """What the ledger weighs uses by."""
        near = digest in self._on_ssd
        server = self.server
        return size / (server.ssd_bytes_per_second if near else server.remote_bytes_per_second)

    def _make_room(self, size: int) -> bool:
        """Whether there is room now, at the expense of what is missed least and not leased."""
        try:
            victims = self._ledger.reserve(size)
        except (errors.NoCapacity, errors.ModelTooLarge):
            return False
        self._ledger.unreserve(size)  # taken at once
        for digest in victims:
            del self._pool[digest]
        return True

    # --- what it says -------------------------------------------------------------------------

    def facts(self, now: float) -> NodeFacts:
        """What a report says of the node itself."""
        server = self.server
        from_ssd = max(0.0, self._ssd_free_at - now) * server.ssd_bytes_per_second
        from_afar = max(0.0, self._remote_free_at - now) * server.remote_bytes_per_second
        device_bytes = server.gpus * server.gpu_bytes
        return NodeFacts(
            node_id=self.node_id,
            address=f"{self.node_id}:1",
            tiers={
                Tier.SSD: TierUsage(server.ssd_bytes, 0),
                Tier.DRAM: TierUsage(server.dram_bytes, self._ledger.used),
                Tier.DEVICE: TierUsage(device_bytes, self.gpus_used * server.gpu_bytes),
            },
            links={
                **self._links_from_afar(round(from_afar)),
                (Tier.SSD, Tier.DRAM): Link(server.ssd_bytes_per_second, round(from_ssd)),
                (Tier.DRAM, Tier.DEVICE): Link(server.pcie_bytes_per_second),
            },
            kv_capacity=device_bytes,
            init_time=server.init_seconds,
            zone=self.zone,
        )

    def _links_from_afar(self, queued: int) -> dict[LinkKey, Link]:
        most = self.server.remote_bytes_per_second
        found = {
            (Tier.REMOTE, Tier.SSD): Link(min(most, self._afar.store_bytes_per_second), queued)
        }
        return found | ({(Tier.PEER, Tier.SSD): Link(most)} if self._afar.peers else {})

    @property
    def ssd_copies(self) -> tuple[Copy, ...]:
        """What its SSD holds. What comes from afar only passes through it."""
        sizes = ((digest, self._models[digest].size_bytes) for digest in sorted(self._on_ssd))
        return tuple(Copy(digest, Tier.SSD, size, size) for digest, size in sizes)

    def changed_copies(self, now: float) -> tuple[Copy, ...]:
        """What has changed in its pool since the last time."""
        held = {digest: self._copy(digest, one, now) for digest, one in self._pool.items()}
        changed = [copy for digest, copy in held.items() if self._reported.get(digest) != copy]
        gone = [
            replace(one, resident_bytes=0) for key, one in self._reported.items() if key not in held
        ]
        self._reported = held
        return (*gone, *changed)

    def _copy(self, digest: str, pooled: Pooled, now: float) -> Copy:
        size = pooled.size_bytes
        resident = size - min(size, self._missing(pooled, now))
        return Copy(
            digest, Tier.DRAM, size, resident, leased=bool(pooled.holding and pooled.holding.leases)
        )

    def settled(self, now: float) -> bool:
        """Whether what it says stays true until something is done to it."""
        return max(self._ssd_free_at, self._remote_free_at) <= now

    def _missing(self, pooled: Pooled, now: float) -> int:
        """Bytes of it that have not been read yet."""
        return round(max(0.0, pooled.complete_at - now) * pooled.bytes_per_second)

    def check_integrity(self) -> None:
        """Raises AssertionError if more is in use than there is."""
        assert 0 <= self.gpus_used <= self.server.gpus
        self._ledger.check_integrity(self._pool)
