"""A cluster's certificates for tests, and those of somebody else."""

from pathlib import Path

import grpc

from sllm import rpc
from sllm.tls.authority import issue, make_authority
from sllm.tls.cluster import ClusterTls
from sllm.tls.identity import DEFAULT_CLUSTER, Role, name_of


class Certs:
    """An authority, made where there is none yet, and what it issues."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not self.authority.exists():
            make_authority(directory, 30)

    @property
    def authority(self) -> Path:
        """ca.crt."""
        return self.directory / "ca.crt"

    def of(
        self, *roles: Role, days: int = 10, cluster: str = DEFAULT_CLUSTER, into: str = ""
    ) -> Path:
        """A directory with a certificate that says so; 0 days: it is over already."""
        named = into or f"{'-'.join(roles)}-{cluster}-{days}"
        names = [name_of(role, cluster) for role in roles]
        return issue(
            self.directory, [*names, "localhost", "127.0.0.1"], self.directory / named, days
        ).directory

    def tls(self, role: Role) -> ClusterTls:
        """The same, in use."""
        return ClusterTls(self.of(role), role)


def dial_with(directory: Path | None, authority: Path, server: Role) -> rpc.Dial:
    """Calls servers of a role with whatever certificate, or without one."""
    own: tuple[bytes | None, bytes | None] = (None, None)
    if directory:
        own = ((directory / "tls.key").read_bytes(), (directory / "tls.crt").read_bytes())
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), *own)
    name = name_of(server, DEFAULT_CLUSTER)

    def dial(target: str, options: rpc.Options = rpc.CHANNEL_OPTIONS) -> grpc.aio.Channel:
        named = [*options, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(target, credentials, options=named)

    return dial
