"""A channel whose new calls use the certificate that is current."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Final

import grpc

_AS_LONG_AS_IT_TAKES: Final = 10 * 365 * 24 * 3600.0

Make = Callable[[], grpc.aio.Channel]


class RenewedChannel(grpc.aio.Channel):
    """A channel that gives way to another one once `version` is another.

    gRPC binds a channel to the certificate that it was made with. Calls under way go on over the
    connection that they have; the channel of theirs is closed when the last of them has ended.
    """

    def __init__(self, make: Make, version: Callable[[], Hashable]) -> None:
        """Belongs to the running event loop. `make` makes a channel of the current version."""
        self._make = make
        self._version = version
        self._made_of = version()
        self._channel = make()
        self._retired: set[asyncio.Task[None]] = set()
        self._closed = False

    def current(self) -> grpc.aio.Channel:
        """The channel for a call that begins now."""
        if not self._closed and (version := self._version()) != self._made_of:
            self._retire(self._channel)
            self._made_of, self._channel = version, self._make()
        return self._channel

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.create_task(channel.close(_AS_LONG_AS_IT_TAKES), name="retired channel")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        self._closed = True
        retired = list(self._retired)
        for task in retired:
            task.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        await self._channel.close(grace)

    async def __aenter__(self) -> "RenewedChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(None)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "stream_stream", args, kwargs)


class _Method:
    """A method of whichever channel is current when it is called."""

    def __init__(
        self, channel: RenewedChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._of = (kind, args, kwargs)
        self._bound_to: grpc.aio.Channel | None = None
        self._bound: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self._channel.current()
        if channel is not self._bound_to:
            kind, given, named = self._of
            self._bound_to, self._bound = channel, getattr(channel, kind)(*given, **named)
        return self._bound(*args, **kwargs)
