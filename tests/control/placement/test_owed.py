"""Whose instances may have to end, where there are several tenants."""

from dataclasses import replace

from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.usage import Use
from sllm.control.placement.decisions import Demand, Start, Wait
from sllm.control.placement.placement import place
from sllm.control.placement.victims import Yield, cheapest
from tests.control.shapes import facts, instance, need, snapshot, view

IMPATIENT = Demand(need("a:m"), impatient=True)


def full_of(*deployments: str, busy: int = 1) -> Snapshot:
    """A node whose room is all taken by instances that have so many requests."""
    instances = [instance(f"i-{name}", name) for name in deployments]
    uses = {one.instance_id: Use("n1", busy, 0.0) for one in instances}
    return snapshot(view(facts(kv=100 * len(deployments)), instances=instances), uses=uses)


def drained(cluster: Snapshot, demand: Demand) -> tuple[str, ...]:
    action = place(cluster, demand).action
    assert isinstance(action, Wait)
    return action.drain


def test_busy_instances_end_only_for_those_who_have_less() -> None:
    cluster = full_of("b:m")
    assert drained(cluster, replace(IMPATIENT, owed=frozenset())) == ()
    assert drained(cluster, replace(IMPATIENT, owed=frozenset({"b:m"}))) == ("i-b:m",)
    assert drained(cluster, IMPATIENT) == ("i-b:m",)


def test_idle_instances_end_for_everybody() -> None:
    action = place(full_of("b:m", busy=0), replace(IMPATIENT, owed=frozenset())).action
    assert isinstance(action, Start)
    assert action.victims == ("i-b:m",)


def test_of_its_own_an_idle_instance_ends_before_a_busy_one() -> None:
    cluster = full_of("a:1", "a:2", "b:m")
    idle = replace(cluster, uses={**cluster.uses, "i-a:2": Use("n1", 0, 0.0)})
    mine = replace(IMPATIENT, owed=frozenset({"a:1", "a:2"}))
    assert cheapest(idle, mine) == Yield("i-a:2", busy=False)
    assert cheapest(cluster, mine) in (Yield("i-a:1", busy=True), Yield("i-a:2", busy=True))
    assert cheapest(cluster, replace(mine, impatient=False)) is None
    assert cheapest(cluster, replace(mine, owed=frozenset())) is None


def test_what_is_kept_or_has_just_come_back_does_not_end() -> None:
    cluster = full_of("a:1", busy=0)
    mine = replace(IMPATIENT, owed=frozenset({"a:1"}))
    assert cheapest(replace(cluster, protected=frozenset({"i-a:1"})), mine) is None
    assert cheapest(cluster, replace(mine, resident=frozenset({"i-a:1"}))) is None
