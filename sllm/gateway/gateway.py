"""One gateway: its control planes, and the requests under way. Belongs to one event loop."""

import asyncio
from typing import Protocol

from sllm import errors, rpc
from sllm.gateway.attempts import Cancels
from sllm.gateway.control_planes import ControlPlanes
from sllm.gateway.files import FileStore
from sllm.gateway.held import Held
from sllm.gateway.settings import GatewaySettings
from sllm.gateway.token_texts import TokenTexts

GOING_DOWN = "the gateway is going down; try again"


class UnderWay(Protocol):
    """A request that is being answered."""

    def end(self) -> None:
        """Ends it from outside."""


class Gateway:
    """What all requests share."""

    def __init__(self, settings: GatewaySettings, dial: rpc.Dial = rpc.channel) -> None:
        """`dial` leads to control planes."""
        self.settings = settings
        self.planes = ControlPlanes(settings.controls, dial)
        self.cancels = Cancels(self.planes.cancel)
        self.held = Held(settings.max_held_bytes, "bodies")
        self.arriving = Held(settings.max_arriving_bytes, "files that are on their way")
        self.token_texts = TokenTexts(self.planes)
        self.files = FileStore(settings.files_directory, settings.max_files_bytes)
        self._under_way: set[UnderWay] = set()
        self._closing = False

    def enter(self, exchange: UnderWay) -> None:
        """Takes a request.

        Raises:
            errors.ShuttingDown: It comes too late.
            errors.QueueFull: Too many are under way.
        """
        if self._closing:
            raise errors.ShuttingDown(GOING_DOWN)
        most = self.settings.max_requests
        if len(self._under_way) >= most:
            raise errors.QueueFull(f"{most} requests are under way, as many as may; try again")
        self._under_way.add(exchange)

    def leave(self, exchange: UnderWay) -> None:
        """Forgets a request; may be called again."""
        self._under_way.discard(exchange)

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self._under_way

    def close_door(self) -> None:
        """Takes no more requests."""
        self._closing = True

    def end_all(self) -> None:
        """Ends those under way. Their generations go on for a while if they can be read on."""
        for exchange in list(self._under_way):
            exchange.end()

    async def close(self) -> None:
        """Leaves the control planes, and no files that nobody else has."""
        await self.cancels.close()
        await self.planes.close()
        await asyncio.to_thread(self.files.close)
