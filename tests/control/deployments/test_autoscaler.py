"""Scaling plans: by hand, and by random loads for what must always hold."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.specs import ScalingPolicy
from sllm.control.deployments.autoscaler import RAMP, Load, Plan, Replica, plan

NOW = 100.0


def _load(*ready: Replica, waiting: int = 0, starting: int = 0, concurrency: int = 4) -> Load:
    return Load(waiting, ready, starting, concurrency)


def idle(name: str = "i", since: float = NOW) -> Replica:
    return Replica(name, 0, since)


def busy(name: str = "i", in_flight: int = 4) -> Replica:
    return Replica(name, in_flight, NOW)


def test_a_request_wakes_a_deployment_that_sleeps() -> None:
    assert plan(_load(waiting=1), ScalingPolicy(), NOW).start == 1


def test_one_that_starts_already_is_waited_for() -> None:
    assert plan(_load(waiting=4, starting=1), ScalingPolicy(max_replicas=3), NOW).start == 0


def test_a_longer_queue_gets_more_instances_up_to_the_maximum() -> None:
    policy = ScalingPolicy(max_replicas=3)
    assert plan(_load(waiting=9), policy, NOW).start == 3
    assert plan(_load(busy(), waiting=5), policy, NOW).start == 2
    assert plan(_load(busy(), waiting=500), policy, NOW).start == 2


def test_free_slots_are_used_before_anything_starts() -> None:
    assert plan(_load(busy(in_flight=1), waiting=3), ScalingPolicy(max_replicas=3), NOW).start == 0


def test_an_idle_instance_stays_for_its_keep_alive() -> None:
    policy = ScalingPolicy(keep_alive=60.0)
    assert plan(_load(idle(since=50.0)), policy, NOW) == Plan(next_expiry=110.0)
    assert plan(_load(idle(since=40.0)), policy, NOW) == Plan(stop=("i",))


def test_without_keep_alive_it_ends_at_once() -> None:
    assert plan(_load(idle()), ScalingPolicy(keep_alive=0.0), NOW).stop == ("i",)


def test_busy_instances_stay() -> None:
    assert plan(_load(busy(in_flight=1)), ScalingPolicy(keep_alive=0.0), NOW) == Plan()


def test_the_minimum_is_started_and_kept() -> None:
    policy = ScalingPolicy(min_replicas=2, max_replicas=3, keep_alive=0.0)
    assert plan(_load(), policy, NOW).start == 2
    assert plan(_load(idle("a", 1.0), idle("b", 2.0), idle("c", 3.0)), policy, NOW).stop == ("a",)


def test_what_a_new_policy_has_no_place_for_ends_when_it_is_idle() -> None:
    load = _load(idle("a", 1.0), idle("b", 2.0), busy("c"))
    assert plan(load, ScalingPolicy(max_replicas=2, keep_alive=1000.0), NOW).stop == ("a",)


def test_starts_are_ramped_up() -> None:
    policy = ScalingPolicy(min_replicas=100, max_replicas=100)
    assert plan(_load(), policy, NOW).start == RAMP
    assert plan(_load(starting=RAMP - 1), policy, NOW).start == 1
    assert plan(_load(starting=RAMP), policy, NOW).start == 0
    many = [busy(f"i{index}") for index in range(3 * RAMP)]
    assert plan(_load(*many, waiting=900), policy, NOW).start == 3 * RAMP
    assert plan(_load(*many, waiting=900, starting=RAMP), policy, NOW).start == 2 * RAMP


def test_a_target_below_the_maximum_starts_more_before_anything_has_to_wait() -> None:
    policy = ScalingPolicy(max_replicas=3, target_concurrency=2)
    assert plan(_load(busy(in_flight=2)), policy, NOW).start == 0
    assert plan(_load(busy(in_flight=3)), policy, NOW).start == 1
    assert plan(_load(busy(in_flight=4), waiting=8), policy, NOW).start == 2


def test_an_instance_stays_for_as_long_as_a_request_has_wished() -> None:
    policy = ScalingPolicy(keep_alive=0.0)
    wished = Replica("i", 0, 50.0, kept_until=130.0)
    assert plan(_load(wished), policy, NOW) == Plan(next_expiry=130.0)
    assert plan(_load(wished), policy, 130.0).stop == ("i",)


def test_a_wish_does_not_shorten_what_the_policy_says() -> None:
    wished = Replica("i", 0, 50.0, kept_until=60.0)
    assert plan(_load(wished), ScalingPolicy(keep_alive=60.0), NOW) == Plan(next_expiry=110.0)


def test_what_nobody_waits_for_starts_an_instance_and_keeps_none_from_ending() -> None:
    policy = ScalingPolicy(max_replicas=3, keep_alive=0.0)
    assert plan(Load(0, (), 0, 4, background=1), policy, NOW).start == 1
    full = Replica("i", 4, NOW, background=4)
    assert plan(Load(0, (full,), 0, 4, background=9), policy, NOW).start == 2
    assert plan(Load(0, (idle(),), 0, 4), policy, NOW).stop == ("i",)


def test_those_who_wait_get_slots_of_what_gives_way_before_anything_starts() -> None:
    policy = ScalingPolicy(max_replicas=3)
    full = Replica("i", 4, NOW, background=3)
    assert plan(Load(3, (full,), 0, 4, background=9), policy, NOW).start == 0
    assert plan(Load(4, (full,), 0, 4, background=9), policy, NOW).start == 1


replicas = st.lists(
    st.builds(Replica, st.uuids().map(str), st.integers(0, 4), st.floats(0, NOW)), max_size=5
)
policies = st.builds(
    lambda least, more, keep: ScalingPolicy(least, max(1, least + more), keep),
    st.integers(0, 3),
    st.integers(0, 3),
    st.floats(0, 200),
)


@given(st.integers(0, 20), replicas, st.integers(0, 3), policies)
def test_the_bounds_hold_and_nothing_busy_ends(
    waiting: int, ready: list[Replica], starting: int, policy: ScalingPolicy
) -> None:
    result = plan(Load(waiting, ready, starting, 4), policy, NOW)
    present = len(ready) + starting
    by_id = {one.instance_id: one for one in ready}
    assert all(by_id[key].in_flight == 0 for key in result.stop)
    assert not (result.stop and waiting)
    assert not result.start or present + result.start <= policy.max_replicas
    assert present + result.start >= policy.min_replicas
    assert not result.stop or present - len(result.stop) >= policy.min_replicas
    assert result.next_expiry is None or result.next_expiry > NOW


def _changed(*outdated: Replica, ready: tuple[Replica, ...] = (), waiting: int = 0) -> Load:
    return Load(waiting, ready, 0, 4, outdated)


def test_those_from_before_a_change_leave_as_others_get_ready() -> None:
    policy = ScalingPolicy(max_replicas=3)
    assert plan(_changed(busy("a")), policy, NOW) == Plan(start=1)
    both = plan(_changed(busy("a", 3), busy("b")), policy, NOW)
    assert both == Plan(start=2)
    one_ready = plan(_changed(busy("a", 3), busy("b"), ready=(idle("c"),)), policy, NOW)
    assert (one_ready.start, one_ready.retire) == (1, ("a",))
    done = plan(_changed(busy("a"), ready=(busy("c"), idle("d"))), policy, NOW)
    assert (done.start, done.retire) == (0, ("a",))


def test_idle_ones_from_before_stay_only_for_the_minimum() -> None:
    assert plan(_changed(idle("a")), ScalingPolicy(), NOW) == Plan(retire=("a",))
    kept = plan(_changed(idle("a", 1.0), idle("b", 2.0)), ScalingPolicy(min_replicas=1), NOW)
    assert kept == Plan(start=1, retire=("a",))


def test_those_who_wait_count_beside_those_from_before() -> None:
    policy = ScalingPolicy(max_replicas=2)
    assert plan(_changed(busy("a"), waiting=1), policy, NOW) == Plan(start=2)
