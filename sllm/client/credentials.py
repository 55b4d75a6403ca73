"""What a client shows, and what it looks at: its key, and the control plane's certificate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import grpc

from sllm import config, errors, rpc

SYSTEM: Final = "system"
"""Stands for the authorities that the system trusts."""
_acting: ContextVar[str | None] = ContextVar("acting", default=None)


@contextmanager
def acting_with(key: str) -> Iterator[None]:
    """Shows another key in all calls that are begun within: that of whoever is acted for."""
    token = _acting.set(key)
    try:
        yield
    finally:
        _acting.reset(token)


def headers(key: str) -> list[tuple[str, str]]:
    """What says who is calling, who has that key; nothing without one."""
    acting = _acting.get()
    shown = key if acting is None else acting
    return [("authorization", f"Bearer {shown}")] if shown else []


def key_of(given: str | None) -> str:
    """The key that was given, or that of the environment; empty where there is none.

    Raises:
        errors.InvalidArgument: It is no key, but something that cannot be sent.
    """
    key = os.environ.get(config.API_KEY_VARIABLE, "") if given is None else given
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise errors.InvalidArgument("the API key has characters that no key has")
    return key


def dial_of(authority: str | None) -> rpc.Dial:
    """How control planes are called: with TLS, if an authority is given or in the environment.

    Args:
        authority: PEM file of whoever signs their certificates, or "system". None: SLLM_TLS_CA.
            Empty: in the clear.

    Raises:
        errors.InvalidArgument: There is no such file.
    """
    named = os.environ.get(config.TLS_CA_VARIABLE, "") if authority is None else authority
    if not named:
        return rpc.channel
    credentials = grpc.ssl_channel_credentials(None if named == SYSTEM else _read(Path(named)))

    def dial(target: str, options: rpc.Options = rpc.CHANNEL_OPTIONS) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, credentials, options=list(options))

    return dial


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.InvalidArgument(
            f"the certificate of an authority cannot be read from {path}: {error.strerror}"
        ) from error
