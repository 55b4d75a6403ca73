"""The books of one node: what its instances take, and whether one more has room."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from sllm import errors
from sllm.checkpoint.format.form import form_label
from sllm.config import format_bytes
from sllm.node.device.interface import Devices
from sllm.node.instances.instance import Instance
from sllm.node.instances.memory import NodeMemory
from sllm.node.instances.spec import InstanceSpec
from sllm.own_memory import Taken

ON_PROCESSORS: Final = (
    "experts are read as they are used (expert_memory) on nodes without accelerators alone"
)
_READY: Final = "ready-made"
"""Ends the kind of instances over weights that were made ready, which copy next to nothing."""


class Books:
    """Counts what the instances of a node hold of its KV caches, memory and devices.

        books = Books(instances, devices, NodeMemory(total, capacity, instance_bytes), made_of)
        books.check_room(spec)  # or NoCapacity, with the numbers
        instances[spec.instance_id] = Instance(spec, ...)

    Reads `instances` anew at each question, so that it never has to be told of a change.
    """

    def __init__(
        self,
        instances: Mapping[str, Instance],
        devices: Devices,
        empty: NodeMemory,
        made_of: Callable[[InstanceSpec], str],
    ) -> None:
        """Counts nothing yet.

        Args:
            instances: whose books these are.
            devices: the node's.
            empty: the memory that they take from, without them.
            made_of: digest of the checkpoint of which an instance would find its weights made
                ready, by all that is known. Empty: it would not.
        """
        self._made_of = made_of
        self._ready_bytes: dict[_Ready, int] = {}
        """What the last instance over ready-made weights took for copies of its own."""
        self._instances = instances
        self._devices = devices
        self._empty = empty

    def of(self, instances: Mapping[str, Instance]) -> "Books":
        """The same books, of some of the instances alone."""
        found = Books(instances, self._devices, self._empty, self._made_of)
        found._ready_bytes = self._ready_bytes
        return found

    @property
    def kv_used_bytes(self) -> int:
        """What the instances hold of the KV budget."""
        instances = list(self._instances.values())  # at once: metrics are read in another thread
        return sum(instance.spec.kv_bytes for instance in instances)

    @property
    def memory(self) -> NodeMemory:
        """The memory that instances take for themselves."""
        return self._empty.with_taken(tuple(self._taken(one) for one in self._instances.values()))

    def check_room(self, spec: InstanceSpec) -> bool:
        """Whether one more instance may start.

        Returns:
            Whether it may because it is expected to start over ready-made weights, of which it is
            known what they take; see `check_published`.

        Raises:
            errors.InvalidArgument: It asks for what does not go together.
            errors.NoCapacity: The KV budget has no room for it, the memory, or the node.
        """
        self._check_devices(spec)
        self._check_kv(spec)
        copied = self.copied_over(self._made_of(spec), _label(spec))
        over_ready = copied is not None
        kind, private_bytes = _kind(spec, over_ready), self._private_bytes(spec, copied)
        self.memory.check_room(spec.deployment, kind, private_bytes)
        return over_ready

    def check_published(self, instance: Instance) -> None:
        """Counts a start over weights as published, whatever was expected of it.

        Raises:
            errors.NoCapacity: There is no room for its copies of them.
        """
        if not instance.over_ready:
            return
        instance.over_ready = False
        if (free := self.memory.free_bytes) < 0:
            raise errors.NoCapacity(
                f"{instance.spec.deployment} has no ready-made weights any more, and lacks "
                f"{format_bytes(-free)} of memory for copies of those that are published"
            )

    def note_end(self, instance: Instance) -> None:
        """Remembers what an instance took, for those that follow."""
        if instance.over_ready and instance.memory.bytes:
            self._ready_bytes[self._ready(instance)] = self._copied(instance)

    def copied_over(self, made_of: str, made_for: str) -> int | None:
        """Memory that instances over ready-made weights take for copies of their own.

        None: it was not measured here.

        Args:
            made_of: digest of the checkpoint as it is published.
            made_for: what its weights were made ready for; see `WeightForm.label`.
        """
        if not made_of:
            return None
        wanted = _Ready(made_of, made_for)
        measured = (one for one in self._instances.values() if one.over_ready and one.memory.bytes)
        present = [self._copied(one) for one in measured if self._ready(one) == wanted]
        return max(present, default=self._ready_bytes.get(wanted))

    def _ready(self, instance: Instance) -> "_Ready":
        running, spec = instance.running, instance.spec
        return _Ready(running.digest if running else self._made_of(spec), _label(spec))

    def _copied(self, instance: Instance) -> int:
        return max(0, instance.memory.bytes - self._empty.instance_bytes)

    def _check_devices(self, spec: InstanceSpec) -> None:
        asked, most = spec.engine.tensor_parallel, self._devices.max_together
        if spec.engine.expert_bytes is not None and self._devices.infos():
            raise errors.InvalidArgument(ON_PROCESSORS)
        if asked > 1 and spec.engine.max_adapters:
            raise errors.InvalidArgument(
                f"{spec.deployment} runs on {asked} devices together, which take no adapters: "
                "leave out tensor_parallel or max_adapters"
            )
        if asked > most:
            raise errors.NoCapacity(
                f"{spec.deployment} runs on {asked} devices together, and {most} may run one "
                "instance on this node"
            )

    def _check_kv(self, spec: InstanceSpec) -> None:
        capacity = self._devices.kv_capacity_bytes
        free = capacity - self.kv_used_bytes
        if spec.kv_bytes > free:
            raise errors.NoCapacity(
                f"{spec.deployment} needs {spec.kv_bytes} bytes of KV cache; {free} of "
                f"{capacity} are free on this node"
            )

    def _taken(self, instance: Instance) -> Taken:
        spec, over_ready = instance.spec, instance.over_ready
        copied = self._ready_bytes.get(self._ready(instance)) if over_ready else None
        private_bytes = self._private_bytes(spec, copied)
        return Taken(_kind(spec, over_ready), instance.memory.bytes, private_bytes)

    def _private_bytes(self, spec: InstanceSpec, copied: int | None) -> int | None:
        # Where weights are on devices, copies of them are there as well.
        if self._devices.infos():
            return None
        return spec.private_bytes if copied is None else copied


class _Ready(NamedTuple):
    """Weights that were made ready."""

    made_of: str
    made_for: str


def _label(spec: InstanceSpec) -> str:
    return form_label(spec.engine.engine, spec.engine.tensor_parallel)


def _kind(spec: InstanceSpec, over_ready: bool) -> tuple[str, ...]:
    return (*spec.kind, _READY) if over_ready else spec.kind
