"""What guards a cluster on this machine: a key of its admin, and certificates of its own."""

import asyncio
import os
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from sllm import errors

if TYPE_CHECKING:
    from sllm.client.aio import AsyncClient
    from sllm.rpc import Dial

log = structlog.get_logger()

_AUTHORITY_DAYS: Final = 3650
_DAYS: Final = 90
_RENEW_SECONDS: Final = 24 * 3600.0
_ROLES: Final = ("control", "node", "gateway", "metrics")
_HOSTS: Final = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Guards:
    """Files in the cluster's directory, made once and used again.

    guards = Guards(Path("/home/ada/.sllm"), tls=True)
    guards.make()
    guards.of("node")    # ("--tls", "/home/ada/.sllm/certs/node")
    """

    directory: Path
    tls: bool = False
    """Whether processes have certificates as well."""

    @property
    def key_file(self) -> Path:
        """Holds the admin's key."""
        return self.directory / "admin-key"

    @property
    def authority(self) -> Path:
        """Directory of what certificates are signed with."""
        return self.directory / "certs"

    def make(self) -> None:
        """Makes what is not there yet, and new certificates in the place of those that are.

        Raises:
            OSError: A file cannot be written.
            errors.InvalidArgument: The authority that is there is none.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.key_file.exists():
            self._make_key()
        if self.tls:
            self._issue()

    def _make_key(self) -> None:
        """All of the file at once: without its key nobody would be let in."""
        beside = self.key_file.with_name(f".{self.key_file.name}.new")
        beside.unlink(missing_ok=True)
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(f"sllm_{secrets.token_urlsafe(32)}\n")
        beside.replace(self.key_file)

    def of(self, role: str) -> tuple[str, ...]:
        """Arguments of a server of that role."""
        return ("--tls", str(self.authority / role)) if self.tls else ()

    def of_control(self) -> tuple[str, ...]:
        """Arguments of the control plane."""
        return "--auth", "--admin-key-file", str(self.key_file), *self.of("control")

    def client(self, address: str) -> "AsyncClient":
        """The admin's client of the control plane."""
        from sllm.client.aio import AsyncClient

        authority = str(self.authority / "ca.crt") if self.tls else ""
        return AsyncClient(address, api_key=self.key_file.read_text().strip(), tls_ca=authority)

    def to_nodes(self) -> "Dial":
        """Makes channels to nodes."""
        from sllm import rpc

        if not self.tls:
            return rpc.channel
        from sllm.tls.cluster import ClusterTls
        from sllm.tls.identity import Role

        return ClusterTls(self.authority / "control", Role.CONTROL).dial(Role.NODE)

    def told(self, address: str) -> str:
        """What a shell is told before it calls."""
        words = [f"SLLM_CONTROL={address}"]
        if self.tls:
            words.append(f"SLLM_TLS_CA={shlex.quote(str(self.authority / 'ca.crt'))}")
        words.append(f'SLLM_API_KEY="$(cat {shlex.quote(str(self.key_file))})"')
        return f"export {' '.join(words)}"

    async def renew(self) -> None:
        """Replaces certificates long before they end, until this is cancelled."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                await asyncio.to_thread(self.make)
            except (OSError, errors.InvalidArgument) as error:
                # Those that are there are good for months: there is time for the disk to be mended.
                log.warning("up.not_renewed", problem=str(error))

    def _issue(self) -> None:
        from sllm.tls.authority import AUTHORITY_KEY, issue, make_authority
        from sllm.tls.identity import name_of, role_of

        if not (self.authority / AUTHORITY_KEY).exists():
            make_authority(self.authority, _AUTHORITY_DAYS)
        for role in _ROLES:
            hosts = _HOSTS if role == "control" else ()
            names = [name_of(role_of(role), "default"), *hosts]
            issue(self.authority, names, self.authority / role, _DAYS)
