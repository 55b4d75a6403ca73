"""What leaves a node, and in which order, where instances need the room that it takes."""

from collections.abc import Awaitable, Callable, Mapping

from sllm import errors
from sllm.node.instances.instance import Instance
from sllm.node.instances.lending import Lending
from sllm.node.instances.ready_maker import Brought, ReadyMaker
from sllm.node.instances.text_workers import TextWorkers


class Room:
    """Nobody waits for what leaves. Belongs to the event loop."""

    def __init__(
        self,
        instances: Mapping[str, Instance],
        lending: Lending,
        ready_maker: ReadyMaker,
        text_workers: TextWorkers,
    ) -> None:
        """Those that may leave; of `instances`, adapters that no request uses."""
        self._instances = instances
        self._lending = lending
        self._ready_maker = ready_maker
        self._text_workers = text_workers

    def give_way(self, free_bytes: int) -> None:
        """Ends what has memory that instances need; `free_bytes`: what they leave of theirs."""
        self._ready_maker.give_way(free_bytes)
        self._text_workers.give_way(free_bytes)

    async def bring_up(self, attempt: Callable[[], Awaitable[Brought]]) -> Brought:
        """Brings weights up, with another attempt after each that lacked room and had some made.

        Raises:
            errors.NoCapacity: There is no room, and nothing is left that would leave.
            errors.SllmError: Whatever else `attempt` raises.
        """
        while True:
            try:
                return await self._ready_maker.with_room(attempt)
            except errors.NoCapacity:
                if not (await self._lending.has_given_way() or await self._an_adapter_leaves()):
                    raise

    async def _an_adapter_leaves(self) -> bool:
        """Has one leave that no request uses; whether there was any."""
        for one in list(self._instances.values()):
            if one.adapters and await one.adapters.make_room():
                return True
        return False
