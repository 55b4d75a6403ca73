"""A small certificate authority for clusters that have none: files in a directory."""

import datetime
import ipaddress
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sllm import errors
from sllm.tls.certificates import AUTHORITY, CERTIFICATE, KEY, REVOKED, revoked_in

AUTHORITY_KEY: Final = "ca.key"
_SKEW: Final = datetime.timedelta(hours=1)
"""How far behind the clock of a machine may be that looks at a new certificate."""
_HOST: Final = re.compile(r"[A-Za-z0-9*](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was made."""

    directory: Path
    names: tuple[str, ...]
    """DNS names and addresses."""
    expires_at: datetime.datetime


def make_authority(directory: Path, days: int) -> Path:
    """Makes an authority: ca.crt, which everybody may have, and ca.key, which nobody else may.

    Raises:
        errors.InvalidArgument: There is one already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / AUTHORITY_KEY).exists():
        raise errors.InvalidArgument(
            f"{directory / AUTHORITY_KEY} is there already: certificates that it has signed would "
            "not be known any more; name another directory"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sllm certificate authority")])
    builder = _builder(name, name, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    _write(directory / AUTHORITY_KEY, _pem(key), private=True)
    _write(directory / AUTHORITY, _pem(builder.sign(key, hashes.SHA256())))
    return directory / AUTHORITY


def issue(authority: Path, names: Collection[str], into: Path, days: int) -> Issued:
    """Makes a certificate, in the layout that servers read; replaces one that is there.

    Args:
        authority: The directory of `make_authority`.
        names: DNS names and addresses that it is for.
        into: Where tls.crt, tls.key and ca.crt are written.
        days: For which it is good.

    Raises:
        errors.InvalidArgument: There is no authority, or a name is none.
    """
    signing, signing_key = _authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    chosen = tuple(dict.fromkeys(names))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, chosen[0][:64])])
    builder = _builder(subject, signing.subject, key, days, until=signing.not_valid_after_utc)
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (
        (x509.SubjectAlternativeName([_general_name(name) for name in chosen]), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs=False), True),
        (
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            False,
        ),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False),
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    made = builder.sign(signing_key, hashes.SHA256())
    into.mkdir(parents=True, exist_ok=True)
    _write(into / KEY, _pem(key), private=True)
    _write(into / CERTIFICATE, _pem(made))
    _write(into / AUTHORITY, (authority / AUTHORITY).read_bytes())
    if (authority / REVOKED).exists():
        _write(into / REVOKED, (authority / REVOKED).read_bytes())
    return Issued(into, chosen, made.not_valid_after_utc)


def revoke(authority: Path, certificate: Path) -> Path:
    """Adds a certificate to the list of those that count no more; gives the list's path.

    Args:
        authority: The directory of `make_authority`.
        certificate: PEM, or a directory with tls.crt.

    Raises:
        errors.InvalidArgument: There is no authority, or it has not issued that.
    """
    signing, key = _authority(authority)
    path = certificate / CERTIFICATE if certificate.is_dir() else certificate
    try:
        gone = x509.load_pem_x509_certificate(path.read_bytes())
        gone.verify_directly_issued_by(signing)
    except (OSError, ValueError, TypeError, InvalidSignature) as error:
        raise errors.InvalidArgument(f"{path} is no certificate of {authority}: {error}") from error
    serials = sorted({*revoked_in(authority, [signing]), gone.serial_number})
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(signing.subject)
    builder = builder.last_update(now).next_update(signing.not_valid_after_utc)
    for serial in serials:
        one = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=now).build()
        builder = builder.add_revoked_certificate(one)
    made = builder.sign(key, hashes.SHA256())
    _write(authority / REVOKED, made.public_bytes(serialization.Encoding.PEM))
    return authority / REVOKED


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / AUTHORITY).read_bytes())
        pem = (directory / AUTHORITY_KEY).read_bytes()
        key = serialization.load_pem_private_key(pem, None)
    except (OSError, ValueError, TypeError) as error:
        raise errors.InvalidArgument(
            f"there is no authority in {directory}: {error}; `sllm certs init` makes one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise errors.InvalidArgument(f"{directory / AUTHORITY_KEY} is no key of `sllm certs init`")
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    *,
    until: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(end, until) if until else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST.fullmatch(name):
            raise errors.InvalidArgument(f"{name!r} is no host name or address") from None
        return x509.DNSName(name)


def _pem(made: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    if isinstance(made, x509.Certificate):
        return made.public_bytes(serialization.Encoding.PEM)
    return made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Puts a file in the place of the one that is there, whole."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    beside.replace(path)
