"""How a process of the cluster meets the others: by its certificate, and theirs."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

import grpc

from sllm import errors, rpc
from sllm.telemetry import MetricsDoor
from sllm.tls.certificates import AUTHORITY, CERTIFICATE, KEY, Certificates, Material
from sllm.tls.identity import Role, cluster_of, name_of, roles_in
from sllm.tls.peers import PeerRules, PeersAlone
from sllm.tls.renewed_channel import RenewedChannel


class ClusterTls:
    """One process's part in a cluster. What it makes uses the certificate that is current."""

    def __init__(self, directory: Path, role: Role) -> None:
        """Reads the certificate of a process of that role; may block.

        Raises:
            errors.InvalidArgument: There is none, or it is of another role.
        """
        self.certificates = Certificates(directory)
        names = self.certificates.current.names
        self.cluster = cluster_of(names)
        if role not in roles_in(names, self.cluster):
            raise errors.InvalidArgument(
                f"the certificate in {directory} is of no {role}: its names are "
                f"{', '.join(sorted(names))}; `sllm certs issue` makes one of {role}s"
            )

    @classmethod
    async def open(cls, directory: Path | None, role: Role) -> Self | None:
        """Reads the certificate without blocking the loop. None: the process has no directory.

        Raises:
            errors.InvalidArgument: There is none in it, or it is of another role.
        """
        return await asyncio.to_thread(cls, directory, role) if directory else None

    def for_peers(self) -> grpc.ServerCredentials:
        """For a port on which every caller has a certificate of the cluster's authority."""
        return self._server(require=True)

    def for_callers(self) -> grpc.ServerCredentials:
        """For a port on which callers have none: they show keys."""
        return self._server(require=False)

    def guard(self, rules: PeerRules) -> PeersAlone:
        """What refuses calls of services by the role of their callers' certificates."""
        return PeersAlone(self.cluster, rules, lambda: self.certificates.current.revoked)

    def metrics_door(self, host: str) -> MetricsDoor:
        """Lets in whoever has a certificate of the cluster's authority."""
        directory = self.certificates.directory
        return MetricsDoor(host, directory / CERTIFICATE, directory / KEY, directory / AUTHORITY)

    def dial(self, role: Role) -> rpc.Dial:
        """Makes channels to servers of a role, which must say so in their certificates."""
        name = name_of(role, self.cluster)

        def dial(target: str, options: rpc.Options = rpc.CHANNEL_OPTIONS) -> grpc.aio.Channel:
            named = [*options, ("grpc.ssl_target_name_override", name)]

            def make() -> grpc.aio.Channel:
                own = self.certificates.current
                credentials = grpc.ssl_channel_credentials(own.authority, own.key, own.certificate)
                return grpc.aio.secure_channel(target, credentials, options=named)

            return RenewedChannel(make, lambda: self.certificates.current)

        return dial

    def dial_for_threads(self, role: Role) -> Callable[[str], grpc.Channel]:
        """As `dial`, of channels whose calls block.

        Each keeps the certificate that it began with.
        """
        options = [
            *rpc.THREAD_OPTIONS,
            ("grpc.ssl_target_name_override", name_of(role, self.cluster)),
        ]

        def dial(target: str) -> grpc.Channel:
            own = self.certificates.current
            credentials = grpc.ssl_channel_credentials(own.authority, own.key, own.certificate)
            return grpc.secure_channel(target, credentials, options=options)

        return dial

    def _server(self, *, require: bool) -> grpc.ServerCredentials:
        used = self.certificates.current

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            """Called by gRPC before each handshake, in a thread of its own."""
            nonlocal used
            if (now := self.certificates.current) is used:
                return None
            used = now
            return _configuration(now)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(used),
            renewed,  # type: ignore[arg-type]  # None: no change, as gRPC's own docstring says
            require_client_authentication=require,
        )


def _configuration(own: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(own.key, own.certificate)], root_certificates=own.authority
    )
