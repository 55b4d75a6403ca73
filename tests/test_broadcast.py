import asyncio

from sllm.broadcast import Broadcast


async def test_a_reader_gets_the_latest_value_first() -> None:
    broadcast: Broadcast[int] = Broadcast()
    broadcast.publish(1)
    broadcast.publish(2)
    broadcast.close()
    assert [value async for value in broadcast.follow()] == [2]


async def test_every_reader_is_woken_by_each_value_and_by_the_end() -> None:
    broadcast: Broadcast[int] = Broadcast()

    async def read() -> list[int]:
        return [value async for value in broadcast.follow()]

    readers = [asyncio.create_task(read()) for _ in range(2)]
    for value in (1, 2, 3):
        broadcast.publish(value)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    broadcast.close()
    assert await asyncio.gather(*readers) == [[1, 2, 3], [1, 2, 3]]


async def test_a_closed_broadcast_without_values_ends_at_once() -> None:
    broadcast: Broadcast[int] = Broadcast()
    broadcast.close()
    assert [value async for value in broadcast.follow()] == []
