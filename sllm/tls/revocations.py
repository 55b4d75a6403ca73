"""Calls of peers, by the serial numbers of their certificates: those that are revoked end."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import structlog
from cryptography import x509

from sllm import errors

log = structlog.get_logger()

_LOOK_SECONDS: Final = 2.0
"""Between two looks at the list while calls are under way."""
_ERROR: Final = "the certificate of this connection was revoked"


class Revocations:
    """Knows which calls were made with which certificate. Belongs to the event loop."""

    def __init__(self, revoked: Callable[[], Collection[int]]) -> None:
        """`revoked` gives the serial numbers that count no more, as they are now."""
        self._revoked = revoked
        self._calls: dict[int, set[asyncio.Task[Any]]] = {}
        self._looking: asyncio.TimerHandle | None = None

    @contextmanager
    def watched(self, context: Any) -> Iterator[None]:
        """Ends what a task does inside if its caller's certificate is revoked meanwhile.

        Raises:
            errors.PermissionDenied: It was, before or meanwhile.
        """
        serial = _serial(context)
        if serial is None:
            yield
            return
        if serial in self._revoked():
            raise _refused(serial)
        task = asyncio.current_task()
        assert task is not None
        calls = self._calls.setdefault(serial, set())
        calls.add(task)
        self._look_later()
        try:
            yield
        except asyncio.CancelledError:
            if serial not in self._revoked() or task.uncancel():
                raise
            raise _refused(serial) from None
        finally:
            calls.discard(task)
            if not calls and self._calls.get(serial) is calls:
                del self._calls[serial]

    def _look_later(self) -> None:
        if self._looking is None and self._calls:
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        for serial in self._calls.keys() & set(self._revoked()):
            for task in self._calls.pop(serial):  # once each: it may take its time to end
                task.cancel()
        self._look_later()


def _refused(serial: int) -> errors.PermissionDenied:
    log.warning("tls.revoked", serial=f"{serial:x}")
    return errors.PermissionDenied(_ERROR)


def _serial(context: Any) -> int | None:
    """That of the certificate that a connection was made with. None: there is none."""
    found = context.auth_context().get("x509_pem_cert", ())
    return _serial_of(next(iter(found))) if found else None


@lru_cache(maxsize=4096)
def _serial_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number
