"""The node agent: what this node holds, what it runs, and whether it stays."""

from collections.abc import Callable

from sllm import rpc
from sllm.clock import Clock
from sllm.node.config import INSTANCE_BYTES, NodeConfig
from sllm.node.contents import Contents
from sllm.node.device import metrics as kv_metrics
from sllm.node.device.interface import Devices
from sllm.node.device.kv_shares import CacheSizes
from sllm.node.instances.inspection import Inspector
from sllm.node.instances.instances import Instances, InstanceSettings
from sllm.node.instances.memory import NodeMemory
from sllm.node.instances.zygotes import Zygotes
from sllm.node.kept import metrics as kept_metrics
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers import metrics


class Agent:
    """Ties the tier store, the zygotes and the instances of one node together.

        agent = Agent(config, clock, store, PoolDevice(store, config.pool_kv_bytes), zygotes)
        async for progress in agent.contents.promote(Promotion("/models/llama", None, Tier.DRAM)):
            print(progress.loaded_bytes, "of", progress.total_bytes)
        instance = agent.instances.start(spec)

    Belongs to the event loop.
    """

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        store: TierStore,
        devices: Devices,
        zygotes: Zygotes,
        dial: rpc.Dial = rpc.channel,
    ) -> None:
        """`dial` leads to other nodes."""
        self.config = config
        self.store = store
        self.devices = devices
        self.zygotes = zygotes
        self.leaving = False
        """Whether this node is about to go down, and what it runs is to go on elsewhere."""
        self._watchers: list[Callable[[], None]] = []
        settings = _instance_settings(config, devices)
        self.instances = Instances(store, devices, zygotes, settings, clock, self._changed, dial)
        self.contents = Contents(
            store,
            devices,
            self.instances.room,
            self.instances.ready_maker,
            clock,
            self._changed,
        )
        self.inspector = Inspector(store, devices, zygotes)
        for part in (store, devices, zygotes):
            part.subscribe(self._changed)
        self._observe()

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` after every change of contents or instances."""
        self._watchers.append(watcher)

    def leave(self) -> None:
        """Asks the control plane to have what this node runs go on elsewhere."""
        self.leaving = True
        self._changed()

    async def close(self, grace: float) -> None:
        """Takes nothing on any more, and ends all; requests have `grace` seconds to finish."""
        self.instances.take_no_more()
        await self.contents.close()
        await self.instances.close(grace)

    def _observe(self) -> None:
        """Has metrics ask this node from now on."""
        metrics.observe(
            self._used_bytes,
            self._capacity_bytes,
            lambda: len(self.instances.by_id),
            self.contents.links,
        )
        kept_metrics.observe(self.store.kept.used_bytes)
        kv_metrics.observe(self._kv_caches)

    def _used_bytes(self) -> dict[str, int]:
        tiers = {usage.tier.name: usage.used_bytes for usage in self.contents.usage()}
        return {**tiers, "KV": self.instances.books.kv_used_bytes}

    def _capacity_bytes(self) -> dict[str, int]:
        tiers = {usage.tier.name: usage.capacity_bytes for usage in self.contents.usage()}
        return {**tiers, "KV": self.devices.kv_capacity_bytes}

    def _kv_caches(self) -> list[tuple[str, CacheSizes]]:
        instances = list(self.instances.by_id.values())  # at once: from another thread
        return [(one.spec.deployment, sizes) for one in instances if (sizes := one.kv_cache)]

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def _instance_settings(config: NodeConfig, devices: Devices) -> InstanceSettings:
    on_devices = bool(devices.infos())
    # On devices the KV caches are in the devices' memory, and weights are not made ready.
    own_bytes = config.instances_bytes(0 if on_devices else devices.kv_capacity_bytes)
    return InstanceSettings(
        memory=NodeMemory(config.memory_bytes, own_bytes, INSTANCE_BYTES),
        socket_dir=config.socket_dir,
        ready_made_bytes=None if on_devices else config.ready_made_bytes,
        early_starts=config.early_starts,
        patience=config.patience,
    )
