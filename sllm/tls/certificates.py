"""A process's own certificate, as it lies in a directory: read again once it is renewed."""

import datetime
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sllm import errors

log = structlog.get_logger()

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITY: Final = "ca.crt"
"""The layout of cert-manager, and of Kubernetes' secrets of the type kubernetes.io/tls."""
REVOKED: Final = "ca.crl"
"""Beside them, if any was: the certificates that count no more, in a list that their authority has
signed."""
_LOOK_SECONDS: Final = 1.0
"""Between two looks at whether the files are others."""

_State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Material:
    """What lay there at one moment, and belongs together. All of it is PEM."""

    authority: bytes
    """Certificates that sign those of the cluster; several while one follows another."""
    certificate: bytes
    """Its own, and those between."""
    key: bytes
    names: frozenset[str]
    """DNS names of its own certificate."""
    expires_at: datetime.datetime
    """When its own certificate does."""
    revoked: frozenset[int] = frozenset()
    """Serial numbers of others' that count no more."""


class Certificates:
    """A directory with tls.crt, tls.key and ca.crt. Threads may share it."""

    def __init__(self, directory: Path) -> None:
        """Reads them.

        Raises:
            errors.InvalidArgument: They are not there, or do not belong together.
        """
        self.directory = directory
        self._lock = threading.Lock()
        self._state = _state(directory)
        self._material = read(directory)
        self._looked = time.monotonic()
        self._troubled = False

    @property
    def current(self) -> Material:
        """The latest that belong together: files are replaced one after the other."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= _LOOK_SECONDS:
                self._looked = now
                self._look()
            return self._material

    def _look(self) -> None:
        try:
            state = _state(self.directory)
            if state == self._state:
                return
            self._material, self._state = read(self.directory), state
        except errors.InvalidArgument as error:
            if not self._troubled:
                log.warning("tls.not_renewed", problem=error.message)
            self._troubled = True
            return
        self._troubled = False
        log.info("tls.renewed", directory=str(self.directory))


def read(directory: Path) -> Material:
    """What lies in a directory.

    Raises:
        errors.InvalidArgument: It is not there, or does not belong together.
    """
    files = [directory / name for name in (AUTHORITY, CERTIFICATE, KEY)]
    try:
        authority, certificate, key = (path.read_bytes() for path in files)
        own = x509.load_pem_x509_certificate(certificate)
        authorities = x509.load_pem_x509_certificates(authority)
        fits = load_pem_private_key(key, None).public_key() == own.public_key()
    except (OSError, ValueError, TypeError) as error:
        raise errors.InvalidArgument(
            f"no certificate can be read from {directory}: {error}; there must be {CERTIFICATE}, "
            f"{KEY} and {AUTHORITY}, as `sllm certs issue` and cert-manager write them"
        ) from error
    if not fits:
        raise errors.InvalidArgument(f"{files[2]} is not the key of {files[1]}")
    names = frozenset(_dns_names(own))
    revoked = revoked_in(directory, authorities)
    return Material(authority, certificate, key, names, own.not_valid_after_utc, revoked)


def revoked_in(directory: Path, authorities: Sequence[x509.Certificate]) -> frozenset[int]:
    """Serial numbers of the certificates that a directory's list revokes; none without a list.

    Raises:
        errors.InvalidArgument: It is none, or none of these authorities has signed it.
    """
    path = directory / REVOKED
    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:
        raise errors.InvalidArgument(f"{path} cannot be read: {error}") from error
    if not any(_has_signed(one, found) for one in authorities):
        raise errors.InvalidArgument(f"{path} is signed by no authority of {AUTHORITY}")
    return frozenset(one.serial_number for one in found)


def _has_signed(authority: x509.Certificate, found: x509.CertificateRevocationList) -> bool:
    key = authority.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        return False
    return authority.subject == found.issuer and found.is_signature_valid(key)


def _dns_names(certificate: x509.Certificate) -> Sequence[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName)


def _state(directory: Path) -> _State:
    """Tells the files from others that have taken their place.

    Raises:
        errors.InvalidArgument: They are not there.
    """
    try:
        found = [(directory / name).stat() for name in (AUTHORITY, CERTIFICATE, KEY)]
        found += [path.stat() for path in (directory / REVOKED,) if path.exists()]
    except OSError as error:
        raise errors.InvalidArgument(
            f"no certificate can be read from {directory}: {error}"
        ) from error
    return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)
