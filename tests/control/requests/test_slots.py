"""What the router's use of instances says about them."""

from sllm.control.requests.slots import Slots


def _ready(*instance_ids: str) -> Slots:
    slots = Slots()
    for instance_id in instance_ids:
        slots.add(instance_id, "n1", 0.0)
    return slots


def test_an_instance_is_idle_when_its_last_request_has_gone() -> None:
    slots = _ready("i")
    slots.take("i", "m", 1.0)
    slots.take("i", "m", 2.0)
    assert not slots.release("i", 3.0)
    assert slots.release("i", 4.0)
    assert (slots.uses["i"].in_flight, slots.uses["i"].last_used) == (0, 4.0)


def test_what_nobody_waits_for_keeps_nothing_and_shows_no_demand() -> None:
    slots = _ready("i")
    slots.take_background("i")
    slots.take("i", "m", 1.0)
    assert slots.uses["i"].is_busy
    assert not slots.release("i", 2.0)
    use = slots.uses["i"]
    assert (use.in_flight, use.background, use.is_busy, use.asked_for) == (1, 1, False, True)
    asked = use.demand
    slots.take_background("i")
    assert not slots.release_background("i")
    assert slots.release_background("i")
    use = slots.uses["i"]
    assert (use.in_flight, use.background, use.last_used, use.demand) == (0, 0, 2.0, asked)


def test_the_longest_wish_to_stay_counts() -> None:
    slots = _ready("i")
    for wish in (10.0, 100.0, None, 5.0):
        slots.take("i", "m", 1.0)
        slots.release("i", 2.0, wish)
    assert slots.uses["i"].kept_until == 102.0


def test_who_is_asked_for_often_is_in_demand_and_demand_fades() -> None:
    slots = _ready("often", "once", "late")
    for _ in range(4):
        slots.take("often", "m", 0.0)
    slots.take("once", "n", 0.0)
    assert slots.uses["often"].demand == slots.uses["once"].demand + 2.0
    slots.take("late", "o", 3600.0)
    assert slots.uses["late"].demand > slots.uses["often"].demand


def test_demand_is_the_deployments_and_outlives_its_instances() -> None:
    slots = _ready("first")
    for _ in range(3):
        slots.take("first", "m", 0.0)
    slots.forget("first")
    slots.add("second", "n1", 0.0)
    slots.take("second", "m", 0.0)
    assert slots.uses["second"].demand == 2.0
