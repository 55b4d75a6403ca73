"""The fleet from reports: random sequences against what nodes really hold."""

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.state.fleet import Fleet
from sllm.control.types.reports import Delta, Full, Report
from tests.control.shapes import copy, facts, instance
from tests.properties import examples

NODES = ("n1", "n2")
STATES = (InstanceState.STARTING, InstanceState.READY, InstanceState.DRAINING)


def _full(*instances: Instance, copies: tuple[Copy, ...] = (), revision: int = 1) -> Report:
    return Report("n1", revision, Full(facts(), copies, instances))


def _delta(*instances: Instance, copies: tuple[Copy, ...] = (), revision: int = 2) -> Report:
    return Report("n1", revision, Delta(None, copies, instances))


def test_a_gap_is_noticed_and_changes_nothing() -> None:
    fleet = Fleet()
    assert fleet.apply(_full(), 0.0)
    assert not fleet.apply(_delta(instance(), revision=3), 0.0)
    assert not fleet.nodes["n1"].instances
    assert fleet.apply(_delta(instance(), revision=2), 0.0)
    assert fleet.nodes["n1"].instances


def test_a_heartbeat_repeats_the_last_revision() -> None:
    fleet = Fleet()
    fleet.apply(_full(revision=7), 0.0)
    assert fleet.apply(Report("n1", 7, None), 0.0)
    assert not fleet.apply(Report("n1", 8, None), 0.0)
    assert not fleet.apply(Report("n2", 1, None), 0.0)


def test_a_state_does_not_go_back_when_an_older_report_comes_late() -> None:
    fleet = Fleet()
    fleet.apply(_full(), 0.0)
    fleet.plan(Planned(instance(state=InstanceState.STARTING), "d", 1))
    fleet.settle("n1", "i1", instance())
    fleet.apply(_delta(instance(state=InstanceState.STARTING)), 0.0)
    (one,) = fleet.instances_of("other")
    assert one.state is InstanceState.READY


def test_a_planned_instance_starts_until_its_start_has_ended() -> None:
    fleet = Fleet()
    fleet.apply(_full(), 0.0)
    fleet.plan(Planned(instance(state=InstanceState.STARTING), "d", 1))
    fleet.apply(_delta(instance()), 0.0)
    assert [one.state for one in fleet.instances_of("other")] == [InstanceState.STARTING]
    fleet.settle("n1", "i1", None)
    assert [one.state for one in fleet.instances_of("other")] == [InstanceState.READY]


def test_what_leaves_is_not_present_but_known_until_it_is_gone() -> None:
    fleet = Fleet()
    fleet.apply(_full(instance()), 0.0)
    fleet.leave("i1")
    assert fleet.instance("i1") is None
    assert [one.state for one in fleet.known_instances()] == [InstanceState.DRAINING]
    fleet.apply(_delta(instance(state=InstanceState.GONE)), 0.0)
    assert not list(fleet.known_instances())
    assert not fleet.nodes["n1"].leaving


def test_a_checkpoint_is_held_while_any_tier_has_all_of_it() -> None:
    fleet = Fleet()
    fleet.apply(_full(copies=(copy(resident=50),)), 0.0)
    assert not fleet.holds("d")
    fleet.apply(_delta(copies=(copy(), copy(tier=Tier.DRAM))), 0.0)
    assert fleet.holds("d")
    fleet.apply(_delta(copies=(copy(resident=0),), revision=3), 0.0)
    assert fleet.holds("d")
    fleet.remove("n1")
    assert not fleet.holds("d")


def test_a_snapshot_does_not_change() -> None:
    fleet = Fleet()
    fleet.apply(_full(instance()), 0.0)
    before = fleet.snapshot({}, frozenset())
    fleet.apply(_delta(instance(state=InstanceState.GONE)), 0.0)
    fleet.remove("n1")
    assert before.nodes["n1"].instances
    assert before.instances["other"]


class FleetMachine(RuleBasedStateMachine):
    """Whatever nodes report and the control plane plans, the indices agree with the views."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.revisions: dict[str, int] = {}
        self.truth: dict[str, dict[str, Instance]] = {}

    instance_ids = st.sampled_from(["a", "b", "c"])

    @rule(node=st.sampled_from(NODES))
    def join(self, node: str) -> None:
        self.revisions[node] = 1
        self.truth[node] = {}
        assert self.fleet.apply(Report(node, 1, Full(facts(node))), 0.0)

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), key=instance_ids, state=st.sampled_from([*STATES, InstanceState.GONE]))
    def change(self, data: st.DataObject, key: str, state: InstanceState) -> None:
        node = data.draw(st.sampled_from(sorted(self.truth)))
        one = instance(f"{node}-{key}", f"dep-{key}", node_id=node, state=state)
        self.revisions[node] += 1
        report = Report(node, self.revisions[node], Delta(None, (), (one,)))
        assert self.fleet.apply(report, 0.0)
        if state is InstanceState.GONE:
            self.truth[node].pop(one.instance_id, None)
        else:
            self.truth[node][one.instance_id] = one

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), key=instance_ids)
    def plan(self, data: st.DataObject, key: str) -> None:
        node = data.draw(st.sampled_from(sorted(self.truth)))
        one = instance(f"{node}-{key}", f"dep-{key}", node_id=node, state=InstanceState.STARTING)
        self.fleet.plan(Planned(one, "d", 1))

    @rule(node=st.sampled_from(NODES), key=instance_ids)
    def settle(self, node: str, key: str) -> None:
        self.fleet.settle(node, f"{node}-{key}", None)

    @rule(node=st.sampled_from(NODES), key=instance_ids)
    def leave(self, node: str, key: str) -> None:
        self.fleet.leave(f"{node}-{key}")

    @rule(node=st.sampled_from(NODES))
    def lose(self, node: str) -> None:
        self.fleet.remove(node)
        self.truth.pop(node, None)
        self.revisions.pop(node, None)

    @invariant()
    def indices_agree(self) -> None:
        self.fleet.check_integrity()

    @invariant()
    def reports_are_believed(self) -> None:
        for node, instances in self.truth.items():
            assert self.fleet.nodes[node].instances.keys() == instances.keys()


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = examples(60, stateful_step_count=25)


def test_what_starts_took_is_kept_until_it_is_told_anew() -> None:
    fleet, first, second = Fleet(), InitTime(8, 0.1, 0.2), InitTime(9, 0.3, 0.4)
    told = replace(facts(), init_times=InitTimes({InitKey("a", "e"): first}))
    fleet.apply(Report("n1", 1, Full(told)), 0.0)
    fleet.apply(Report("n1", 2, Delta(facts(), init_times={InitKey("b", "e"): second})), 0.0)
    assert fleet.nodes["n1"].facts.init_times.by_model == {
        InitKey("a", "e"): first,
        InitKey("b", "e"): second,
    }
    assert fleet.snapshot({}, frozenset()).holders.keys() == {"a", "b"}
