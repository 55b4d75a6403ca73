"""HTTPS with a certificate that may be renewed while it is served with."""

import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from sllm import errors
from sllm.tls.certificates import CERTIFICATE, KEY

_LOOK_SECONDS: Final = 1.0
"""Between two looks at whether the certificate is another."""


def server_context(directory: Path) -> ssl.SSLContext:
    """What to serve with, by the tls.crt and tls.key in a directory.

    Raises:
        errors.InvalidArgument: They are not there, or do not belong together.
    """
    certificate, key = directory / CERTIFICATE, directory / KEY
    context = _new_context()
    try:
        context.load_cert_chain(certificate, key)
        used = certificate.stat().st_mtime_ns
    except OSError as error:  # ssl.SSLError is one
        raise errors.InvalidArgument(
            f"HTTPS cannot be served with {certificate} and {key}: {error}"
        ) from error
    looked = time.monotonic()

    def look(_socket: ssl.SSLObject, _name: str | None, context: ssl.SSLContext) -> None:
        """Called for each handshake; the next one has what is found."""
        nonlocal used, looked
        if (now := time.monotonic()) - looked < _LOOK_SECONDS:
            return
        looked = now
        with suppress(OSError):  # one of the files has been replaced so far: looked at again
            if (found := certificate.stat().st_mtime_ns) != used:
                _new_context().load_cert_chain(certificate, key)  # in vain, it would leave none
                context.load_cert_chain(certificate, key)
                used = found

    context.sni_callback = look
    return context


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
