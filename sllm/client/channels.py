"""A channel to several control planes, of which one that can be reached gets the calls."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

_UNREACHABLE: Final = (
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)


class Channels(grpc.aio.Channel):
    """Channels as one. Belongs to one event loop.

    Calls stay with one control plane for as long as it can be reached; a call that has begun stays
    where it is.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        """Takes channels over, the one that is preferred first."""
        self._channels = channels
        self._current = 0

    def choose(self) -> int:
        """The number of the channel that a call made now goes to."""
        count = len(self._channels)
        for number in [(self._current + after) % count for after in range(count)]:
            if self._channels[number].get_state(try_to_connect=True) not in _UNREACHABLE:
                self._current = number
                return number
        self._current = (self._current + 1) % count  # none of them now: the next may be back first
        return self._current

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        for channel in self._channels:
            await channel.close(grace)

    async def __aenter__(self) -> "Channels":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(None)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel; of the one that a call would go to."""
        return self._channels[self.choose()].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel; of the same."""
        await self._channels[self.choose()].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel; of the same."""
        await self._channels[self.choose()].channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_stream", args, kwargs)

    def _method(self, kind: str, args: Any, kwargs: Any) -> Callable[..., Any]:
        methods = [getattr(channel, kind)(*args, **kwargs) for channel in self._channels]

        def call(*args: Any, **kwargs: Any) -> Any:
            return methods[self.choose()](*args, **kwargs)

        return call
