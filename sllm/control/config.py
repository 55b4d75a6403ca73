"""How a control plane is set up."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sllm import bounds, listening
from sllm.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class OidcConfig:
    """An OpenID Connect issuer whose tokens are believed, and what they say."""

    issuer: str
    """URL, exactly as tokens name it."""
    audience: str
    """Whom tokens must be for."""
    tenant_claim: str = "tenant"
    """The claim that names the tenant; a token without it is refused."""
    role_claim: str = "role"
    """The claim that names the role: user, operator or admin; a token without it is a user's."""

    def check(self) -> None:
        """Refuses an issuer that anybody could play.

        Raises:
            InvalidArgument: It is none, or is not reached by HTTPS.
        """
        url = urlsplit(self.issuer)
        local = url.scheme == "http" and listening.is_loopback(url.hostname or "")
        if not url.hostname or not (url.scheme == "https" or local):
            raise InvalidArgument(f"the issuer {self.issuer!r} is no https:// URL")
        if not self.audience:
            raise InvalidArgument("tokens of an issuer need an audience (--oidc-audience)")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a control plane serves: host:port."""

    callers: str
    peers: str
    """Of nodes, gateways and other control planes. Without certificates it is that of callers."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files of a client's TLS, in PEM."""

    ca: Path | None = None
    """Certificates that the server's is signed with. None: there is no TLS."""
    cert: Path | None = None
    """This client's certificate, if the server asks for one."""
    key: Path | None = None
    """Its key."""


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Where etcd is, and how it is talked to."""

    endpoints: tuple[str, ...]
    """host:port of each member."""
    prefix: str = "/sllm/"
    """What all keys begin with; clusters that share an etcd have one each."""
    tls: TlsFiles = TlsFiles()
    """How etcd is known, and this client to it."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """Everything that `sllm control` can be told."""

    directory: Path
    """Where what has to survive a restart is kept; made if it is not there."""
    listen_address: str = "127.0.0.1:50051"
    """host:port to serve callers on; port 0 takes any that is free."""
    peer_listen_address: str | None = None
    """host:port for nodes and gateways, who show certificates there. None: the port after that of
    callers. Without `tls` there is no such port."""
    tls: Path | None = None
    """Directory with this control plane's tls.crt and tls.key and the cluster's ca.crt. None: it
    serves in the clear."""
    insecure: bool = False
    """Whether it may listen beyond this machine in the clear."""
    lease_seconds: float = 3.0
    """How long a node counts as a member without another message."""
    node_patience_seconds: float = 10.0
    """How long requests wait for a node to appear before they fail."""
    drain_patience_seconds: float = 5.0
    """How long a request waits for room before busy instances of other deployments are drained."""
    drain_grace_seconds: float = 600.0
    """Time that running requests have when their instance is drained for others."""
    residency_factor: float = 1.0
    """An instance that comes back after it had to make room for others keeps its room for as many
    times as its start has taken: at most half of the time goes into taking turns."""
    longest_residency_seconds: float = 30.0
    """The longest time that it keeps its room for this reason."""
    orphan_grace_seconds: float = 600.0
    """How long instances are kept that no deployment explains; their deployment may be made again,
    as after a loss of what was stored."""
    max_queued: int = 10_000
    """Requests that may wait, over all deployments; more are refused."""
    max_queued_per_deployment: int = 1_000
    """Requests that may wait for one deployment; more are refused."""
    max_image_bytes: int = 1 << 30
    """Bytes that the images of all requests under way may have together; more are refused."""
    priority_step_seconds: float = 10.0
    """Waiting for so long is worth one step of priority, so that nobody is passed over for good."""
    learn_keep_alive: bool = False
    """Whether deployments that do not say learn how long their idle instances stay."""
    idle_worth_seconds: float = 60.0
    """Seconds for which a whole node may be held so that a request waits a second less; what takes
    a part of a node may stay for longer."""
    zone_links: tuple[tuple[str, str, float], ...] = ()
    """The links between the zones that nodes and callers are in: two names, and the seconds by
    which a request that has to take the way is served later."""
    migrate: bool = True
    """Whether running instances may be migrated away to make room for others."""
    peers: bool = True
    """Whether nodes are told of others to get checkpoints from."""
    lend_layers: bool = False
    """Whether idle nodes compute layers for one that starts an instance, until that has read their
    weights from its disk."""
    start_timeout_seconds: float = 1800.0
    """Longest time that the start of an instance, or the preparation of a checkpoint, may take."""
    linger_seconds: float = 15.0
    """How long nodes go on with requests when this control plane is gone; callers read them on."""
    stop_grace_seconds: float = 2.0
    """Time that calls have to end when the process is asked to."""
    max_batch_requests: int = 50_000
    """Requests of one batch; more are refused."""
    max_batch_bytes: int = 256 << 20
    """Bytes that they may have together."""
    max_batch_bytes_in_etcd: int = 512 << 20
    """Bytes that all batches with their results may have together where they are in etcd, which has
    2 GiB for all that it keeps unless it is told otherwise."""
    max_batches: int = 1_000
    """Batches that are kept, those included that have ended; more are refused."""
    batch_retention_seconds: float = 7 * 24 * 3600.0
    """How long a batch that has ended can be read."""
    probe_port: int | None = None
    """Port on which the health service alone is served, in the clear. None: on none."""
    metrics_port: int | None = None
    """Port for Prometheus; 0 takes any that is free. None: no metrics are served."""
    etcd: EtcdConfig | None = None
    """What several control planes share in place of `directory`, of which one leads. None: this is
    the only one."""
    advertise_host: str | None = None
    """Host under which the other control planes reach this one. None: that of `listen_address`."""
    leader_lease_seconds: int = 3
    """How long nobody else leads after a leader has gone without a word. etcd takes 2 at least."""
    leader_patience_seconds: float = 10.0
    """How long calls wait for somebody to lead before they fail."""

    auth: bool | None = None
    """Whether callers are asked who they are. None: with certificates they are."""
    admin_key_file: Path | None = None
    """File of an admin's key. None: if no admin's key counts, one is made in `made_key_path`."""
    oidc: OidcConfig | None = None
    """Whose tokens are believed beside keys."""

    @property
    def asks_callers(self) -> bool:
        """Whether callers are asked who they are."""
        return self.tls is not None if self.auth is None else self.auth

    @property
    def made_key_path(self) -> Path:
        """Where the first admin's key is written."""
        return self.directory / "admin-key"

    @property
    def peer_address(self) -> str:
        """host:port for nodes and gateways."""
        if self.peer_listen_address is not None:
            return self.peer_listen_address
        host, _, port = self.listen_address.rpartition(":")
        return f"{host}:{int(port) + 1 if port.isdigit() and int(port) else 0}"

    @property
    def state_path(self) -> Path:
        """The SQLite file."""
        return self.directory / "state.db"

    @property
    def batches_path(self) -> Path:
        """That of batches: many and large writes, which nothing else is to wait for."""
        return self.directory / "batches" / "batches.db"


def store_at(location: str, tls: TlsFiles) -> EtcdConfig | Path:
    """What `--store` names: the members of an etcd, or a directory with SQLite files.

    `sqlite:DIR`, or `etcd://HOST:PORT,HOST:PORT/PREFIX`, of which the prefix may be left out.

    Raises:
        InvalidArgument: It is neither.
    """
    kind, _, rest = location.partition(":")
    if kind == "sqlite" and rest:
        return Path(rest).expanduser()
    members, _, prefix = rest.removeprefix("//").partition("/")
    if kind != "etcd" or not rest.startswith("//") or not members:
        raise InvalidArgument(
            f"a store is sqlite:DIR or etcd://HOST:PORT,HOST:PORT/PREFIX, not {location!r}"
        )
    if bool(tls.cert) != bool(tls.key) or (tls.cert and not tls.ca):
        raise InvalidArgument("a certificate for etcd comes with its key, and with etcd's own CA")
    endpoints = tuple(bounds.address(one, "a member of etcd") for one in members.split(","))
    return EtcdConfig(endpoints, f"/{prefix.strip('/') or 'sllm'}/", tls)
