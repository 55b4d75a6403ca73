"""What each part of a client builds on: whom it asks, as whom, and for how long."""

import functools
from types import TracebackType
from typing import Self

from sllm import bounds, config
from sllm.client import credentials
from sllm.client.connection import Connection


class BaseClient:
    """A client without its calls: see `AsyncClient`."""

    def __init__(
        self,
        address: str | None = None,
        *,
        call_timeout: float = 60.0,
        api_key: str | None = None,
        tls_ca: str | None = None,
    ) -> None:
        """Connects at the first call.

        Args:
            address: host:port of the control plane; of several, with commas between. None:
                `SLLM_CONTROL`, or localhost:50051.
            call_timeout: seconds that a call may take which is not given a timeout of its own;
                a generation may take any time.
            api_key: says who is calling: a key of `sllm keys create`, or a token of an OIDC issuer.
                None: `SLLM_API_KEY`, if that is set.
            tls_ca: PEM file of the authority that has signed the control plane's certificate, or
                "system" for those that the system trusts. None: `SLLM_TLS_CA`; empty, or where
                that is not set: there is no TLS.

        Raises:
            errors.InvalidArgument: The address is none, or there is no such file.
        """
        self.address = bounds.addresses(
            address or config.control_address(), "the address of the control plane"
        )
        self._call_timeout = call_timeout
        self._key = credentials.key_of(api_key)
        self._dial = credentials.dial_of(tls_ca)

    @functools.cached_property
    def _connection(self) -> Connection:
        # Not before there is a loop for it.
        return Connection(self.address, self._call_timeout, self._dial, self._key)

    async def close(self) -> None:
        """Ends the streams under way, and the connection."""
        if "_connection" in self.__dict__:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
