"""What is counted of instances whose weights were made ready, and of those that copy them."""

from dataclasses import dataclass, field, replace

import pytest

from sllm import errors
from sllm.clock import ManualClock
from sllm.node.device.interface import Devices
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances.books import Books
from sllm.node.instances.instance import Instance
from sllm.node.instances.memory import NodeMemory
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.watchdog import Patience
from tests.node.stores import Bench

MIB = 1 << 20
PLAIN, COPIES, READY = 50 * MIB, 300 * MIB, 80 * MIB
ENGINE = EngineSpec("vllm", None, None, None)
SPEC = InstanceSpec("i", "m", "/models/m", ENGINE, kv_bytes=1, private_bytes=COPIES)


@dataclass
class Node:
    """Books, and the instances that they are of."""

    devices: Devices
    capacity: int
    has_ready: bool = True
    instances: dict[str, Instance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        empty = NodeMemory(self.capacity, self.capacity, PLAIN)
        self.books = Books(self.instances, self.devices, empty, self._made_of)

    def _made_of(self, spec: InstanceSpec) -> str:
        """Digest of what its weights were made of."""
        return spec.source if self.has_ready else ""

    def start(self, name: str) -> Instance:
        """Begins one, as the agent does, if there is room for it."""
        spec = replace(SPEC, instance_id=name)
        over_ready = self.books.check_room(spec)
        one = Instance(spec, ManualClock(), lambda _: None, Patience())
        one.over_ready = over_ready
        self.instances[name] = one
        return one

    def end(self, name: str) -> None:
        """Ends one."""
        self.books.note_end(self.instances.pop(name))


def measured(one: Instance, own_bytes: int, *, over_ready: bool) -> None:
    """It has become ready, and was measured."""
    one.over_ready = over_ready
    one.memory.take(own_bytes, kv_bytes=0)


@pytest.fixture
def node(bench: Bench) -> Node:
    return Node(PoolDevice(bench.store, 1 << 30), PLAIN + COPIES)


def test_what_was_measured_over_ready_weights_counts_for_the_next_start(node: Node) -> None:
    one = node.start("first")
    assert node.books.memory.used_bytes == PLAIN + COPIES, "nothing was measured yet"
    measured(one, READY, over_ready=True)
    node.end("first")
    assert all(node.start(name).over_ready for name in "abc")
    assert node.books.memory.used_bytes == 3 * READY


def test_it_is_told_by_what_weights_were_made_of_and_for(node: Node) -> None:
    """Several ranks take more than one, and another checkpoint something else."""
    told = node.books.copied_over
    one = node.start("first")
    assert told(SPEC.source, "vllm") is None, "nothing was measured yet"
    measured(one, READY, over_ready=True)
    assert told(SPEC.source, "vllm") == READY - PLAIN
    node.end("first")
    assert told(SPEC.source, "vllm") == READY - PLAIN
    assert told(SPEC.source, "vllm:tp=2") is None
    assert told("another", "vllm") is None
    assert told("", "") is None, "of what is published nothing is told so"
    ranks = replace(SPEC, instance_id="ranks", engine=replace(ENGINE, tensor_parallel=2))
    with pytest.raises(errors.NoCapacity):
        Node(node.devices, PLAIN + COPIES - 1).books.check_room(ranks)


def test_those_that_copy_are_not_taken_for_those_that_do_not(node: Node) -> None:
    measured(node.start("ready"), READY, over_ready=True)
    node.has_ready = False
    with pytest.raises(errors.NoCapacity, match="350"):
        node.start("published")
    node.has_ready = True
    assert node.start("another").over_ready


def test_what_has_to_copy_after_all_has_room_for_it_or_ends(node: Node) -> None:
    measured(node.start("ready"), READY, over_ready=True)
    late = node.start("late")
    with pytest.raises(errors.NoCapacity, match=r"80\.0 MiB of memory for copies"):
        node.books.check_published(late)
    assert not late.over_ready
    node.end("late")
    node.end("ready")
    alone = node.start("alone")
    assert alone.over_ready
    node.books.check_published(alone)
    assert node.books.memory.used_bytes == PLAIN + COPIES


def test_some_of_the_instances_have_books_of_their_own(node: Node) -> None:
    one = node.start("first")
    measured(one, READY, over_ready=True)
    own = node.books.of({"first": one})
    for name in "ab":
        node.start(name)
    assert node.books.memory.used_bytes == 3 * READY
    assert own.memory.used_bytes == READY
    assert node.books.kv_used_bytes == 3 * own.kv_used_bytes > 0
