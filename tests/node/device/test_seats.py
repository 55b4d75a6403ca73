import asyncio
from contextlib import AsyncExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.errors import CheckpointLeased, NoCapacity
from sllm.node.device.interface import DeviceInfo, Placed
from sllm.node.device.reservations import Reservations
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.ledger import Ledger
from sllm.node.tiers.types import Tier
from tests.node.device.machine import ALL_KV_BYTES, KV_BYTES, MODEL_BYTES, Machine


def told(machine: Machine, name: str) -> list[int]:
    return [getattr(info, name) for info in machine.devices.infos()]


def info(machine: Machine) -> DeviceInfo:
    (only,) = machine.devices.infos()
    return only


async def test_instances_go_where_their_weights_are_and_else_where_there_is_room(
    machine: Machine,
) -> None:
    await machine.reopen(devices=2)
    await machine.bring_up(0)
    await machine.bring_up(1)
    assert told(machine, "weights_used_bytes") == [MODEL_BYTES] * 2
    assert (await machine.seat(1)).index == 1
    await machine.bring_up(0)
    assert told(machine, "kv_used_bytes") == [2 * KV_BYTES] * 2
    assert told(machine, "weights_used_bytes") == [MODEL_BYTES] * 2


async def test_two_starts_are_not_given_the_same_room(machine: Machine) -> None:
    """Each device has room for one; nothing has been loaded when the others come."""
    await machine.reopen(devices=2, device_models=1.5)
    seats = [await machine.seat(0), await machine.seat(1)]
    assert {seat.index for seat in seats} == {0, 1}
    assert told(machine, "reserved_bytes") == [MODEL_BYTES] * 2
    with pytest.raises(NoCapacity):
        await machine.seat(2)
    wishes = [machine.wish(0), machine.wish(1)]
    placed = [
        await seat.bring_up(wish, lambda _: None) for seat, wish in zip(seats, wishes, strict=True)
    ]
    for seed, one in enumerate(placed):
        machine.check(one, seed)
    assert told(machine, "reserved_bytes") == [0, 0]


async def test_starts_at_the_same_moment_have_room_of_their_own(machine: Machine) -> None:
    await machine.reopen(devices=3, device_models=1)

    async def bring_up(seed: int) -> Placed:
        seat = await machine.seat(seed)
        return await seat.bring_up(machine.wish(seed), lambda _: None)

    placed = await asyncio.gather(*map(bring_up, range(3)))
    for seed, one in enumerate(placed):  # the books are in order once nothing is under way
        machine.check(one, seed)
    assert told(machine, "weights_used_bytes") == [MODEL_BYTES] * 3
    assert len({one.manifest.digest for one in placed}) == 3


async def test_the_devices_together_are_not_one(machine: Machine) -> None:
    """Taken together there is room for one more, and on no device there is."""
    await machine.reopen(devices=2, device_models=1.5)
    await machine.bring_up(0)
    await machine.bring_up(1)
    taken = rf"have {MODEL_BYTES}, KV caches {KV_BYTES} \(of {ALL_KV_BYTES} at most\)"
    left = MODEL_BYTES // 2 + ALL_KV_BYTES - KV_BYTES
    numbers = rf"Device 0: .*{taken}.* {left} are left; Device 1: .*{taken}.* {left} are left"
    with pytest.raises(NoCapacity, match=rf"\d+ bytes for its weights .*on one device. {numbers}"):
        await machine.seat(2)


async def test_what_a_start_was_given_is_free_when_it_gives_up(machine: Machine) -> None:
    await machine.reopen(device_models=1)
    await machine.seat(0)
    assert (info(machine).reserved_bytes, info(machine).kv_used_bytes) == (MODEL_BYTES, KV_BYTES)
    await machine.free_seats()
    assert (info(machine).reserved_bytes, info(machine).kv_used_bytes) == (0, 0)
    await machine.bring_up(1)


async def test_room_for_the_same_weights_is_kept_once(machine: Machine) -> None:
    await machine.reopen(device_models=1)
    seats = [await machine.seat(0), await machine.seat(0)]
    assert info(machine).reserved_bytes == MODEL_BYTES
    placed = [await seat.bring_up(machine.wish(0), lambda _: None) for seat in seats]
    assert placed[0].place == placed[1].place
    assert info(machine).weights_used_bytes == MODEL_BYTES
    assert info(machine).kv_used_bytes == 2 * KV_BYTES


async def test_it_is_kept_for_the_second_when_the_first_gives_up(machine: Machine) -> None:
    await machine.reopen(device_models=1)
    async with AsyncExitStack() as first:
        found = await machine.bench.store.inspect(machine.bench.model(0), None)
        await first.enter_async_context(machine.devices.seat(found, KV_BYTES))
        second = await machine.seat(0)
    assert info(machine).reserved_bytes == MODEL_BYTES
    await second.bring_up(machine.wish(0), lambda _: None)


async def test_an_idle_copy_stays_for_whoever_has_a_seat_by_it(machine: Machine) -> None:
    await machine.reopen(device_models=1)
    placed = await machine.bring_up(0)
    placed.release()
    await machine.free_seats()
    assert info(machine).idle_bytes == MODEL_BYTES
    seat = await machine.seat(0)
    with pytest.raises(NoCapacity):
        await machine.seat(1)
    with pytest.raises(CheckpointLeased):
        await machine.devices.evict(placed.manifest.digest)
    again = await seat.bring_up(machine.wish(0), lambda _: None)
    assert again.from_tier is Tier.DEVICE


async def test_what_is_idle_has_gone_when_a_start_has_its_seat(machine: Machine) -> None:
    await machine.reopen(device_models=1)
    (await machine.bring_up(0)).release()
    await machine.free_seats()
    await machine.seat(1)
    assert not machine.cuda.allocations


async def test_a_device_that_others_use_is_passed_over(machine: Machine) -> None:
    await machine.reopen(devices=2)
    machine.cuda.taken_by_others[0] = machine.cuda.total_bytes - MODEL_BYTES // 2
    await machine.devices.measure()
    assert (await machine.seat(0)).index == 1
    machine.check(await machine.bring_up(1), 1)


async def test_kv_caches_have_what_weights_leave(machine: Machine) -> None:
    await machine.reopen(device_models=3, kv_bytes=None)
    capacity = 3 * MODEL_BYTES + ALL_KV_BYTES
    assert info(machine).kv_capacity_bytes == machine.devices.kv_capacity_bytes == capacity
    await machine.bring_up(0)
    with pytest.raises(NoCapacity):
        await machine.seat(0, capacity - KV_BYTES - MODEL_BYTES + 1)
    await machine.seat(0, capacity - KV_BYTES - MODEL_BYTES)
    assert info(machine).left_bytes == 0
    with pytest.raises(NoCapacity, match="0 are left"):
        await machine.seat(1, 0)


async def test_idle_weights_make_room_for_kv_caches(machine: Machine) -> None:
    await machine.reopen(device_models=3, kv_bytes=None)
    for seed in (0, 1):
        (await machine.bring_up(seed)).release()
    await machine.free_seats()
    await machine.seat(0, 2 * MODEL_BYTES + ALL_KV_BYTES)
    assert machine.cuda.used_bytes() == MODEL_BYTES


async def test_a_kv_cache_is_on_one_device_and_within_its_bounds(machine: Machine) -> None:
    await machine.reopen(devices=2)
    await machine.seat(0, 700_000)
    assert (await machine.seat(0, 700_000)).index == 1, "though the weights are to come to 0"
    with pytest.raises(NoCapacity, match=r"700000 for its KV cache .*Device 0: .*Device 1: "):
        await machine.seat(0, 700_000)
    assert machine.devices.kv_capacity_bytes == 2 * ALL_KV_BYTES


moves = st.lists(
    st.tuples(st.sampled_from(["enter", "redeem", "leave"]), st.integers(0, 3), st.integers(0, 30))
)


@given(moves)
def test_reservations_are_exact_whatever_comes(steps: list[tuple[str, int, int]]) -> None:
    ledger = Ledger(Tier.DEVICE, 100)
    reservations = Reservations(ledger)
    seats: list[tuple[SourceRecord, int]] = []
    for step, source, size in steps:
        record = SourceRecord(f"s{source}", "", None)
        if step == "enter":
            with suppress(NoCapacity):
                reservations.enter(record, 0 if reservations.has(record) else size, size // 2)
                seats.append((record, size // 2))
        elif step == "redeem":
            reservations.redeem(record)
        elif seats:
            reservations.leave(*seats.pop(size % len(seats)))
        assert ledger.reserved == reservations.kv_bytes + reservations.weights_bytes <= 100
        assert reservations.kv_bytes == sum(kv_bytes for _, kv_bytes in seats)
    for seat in seats:
        reservations.leave(*seat)
    assert ledger.reserved == 0
