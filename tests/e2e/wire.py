"""A network between two that can fall silent: nothing comes any more, and nothing is closed."""

import asyncio
from contextlib import suppress

CHUNK = 64 * 1024


class Wire:
    """Carries bytes between whoever connects and `target`."""

    def __init__(self, target: str) -> None:
        """`target`: host:port."""
        self._host, _, self._port = target.rpartition(":")
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._server: asyncio.Server | None = None
        self._ways: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> None:
        """Listens on host:port."""
        host, _, port = address.rpartition(":")
        self._server = await asyncio.start_server(self._join, host, int(port))

    def silence(self) -> None:
        """From now on all that is sent, either way, is kept on the way."""
        self._speaks.clear()

    def mend(self) -> None:
        """What was kept arrives, and all that comes after it."""
        self._speaks.set()

    async def stop(self) -> None:
        """Ends all connections."""
        if self._server:
            self._server.close()
        for way in self._ways:
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._speaks.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        except OSError:
            writer.close()
            return
        for one, other in ((reader, far_writer), (far_reader, writer)):
            way = asyncio.create_task(self._carry(one, other))
            self._ways.add(way)
            way.add_done_callback(self._ways.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            try:
                while data := await reader.read(CHUNK):
                    await self._speaks.wait()
                    writer.write(data)
                    await writer.drain()
            finally:
                writer.close()
