"""What control planes have stored, moved to another store while none of them runs."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Final

from sllm import errors
from sllm.control.batches import moving
from sllm.control.batches.etcd import EtcdBatches
from sllm.control.batches.keeper import BatchKeeper
from sllm.control.batches.store import BatchStore
from sllm.control.config import ControlConfig, EtcdConfig
from sllm.control.election.ballot import Ballot
from sllm.control.etcd.client import Etcd
from sllm.control.state.etcd import EtcdStore
from sllm.control.state.sqlite import SqliteStore
from sllm.control.state.store import Store

_LEASE_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Moved:
    """How much was moved."""

    deployments: int
    pins: int
    drained_nodes: int
    batches: int


def move(source: EtcdConfig | Path, target: EtcdConfig | Path) -> Moved:
    """Copies all of a store into an empty one; the source stays as it is.

    Raises:
        errors.StartFailed: A control plane uses one of them, there is no source, or something is
            in the target already.
        errors.QueueFull: There is more of batches than etcd is to take.
        errors.StateUnavailable: etcd does not answer.
        OSError: There can be no such directory.
    """
    if isinstance(source, Path) and not ControlConfig(source).state_path.exists():
        raise errors.StartFailed(f"there is no state.db in {source}: nothing was stored there")
    with _opened(source) as (one, its_batches), _opened(target) as (other, batches):
        contents = one.contents()
        staged = moving.stage(its_batches, batches)
        other.fill(contents)
        for batch in staged:
            batches.add(batch)
    kinds = contents.deployments, contents.pins, contents.drained, staged
    return Moved(*map(len, kinds))


@contextmanager
def _opened(at: EtcdConfig | Path) -> Iterator[tuple[Store, BatchKeeper]]:
    """What is stored, which nobody else uses while the block lasts."""
    config = ControlConfig(at if isinstance(at, Path) else Path())
    if isinstance(at, Path):
        with (
            closing(SqliteStore(config.state_path)) as store,
            closing(BatchStore(config.batches_path)) as batches,
        ):
            yield store, batches
        return
    with closing(Etcd(at)) as etcd:
        ballot = Ballot(etcd, "move-store", "nobody:0", _LEASE_SECONDS)
        won = ballot.stand(above=0)
        if won is None:
            raise errors.StartFailed(
                f"a control plane leads on {etcd.name}: stop all that use it, and try again"
            )
        with _kept(ballot, won.lease):
            most_bytes = config.max_batch_bytes_in_etcd
            yield EtcdStore(etcd, won.since), EtcdBatches(etcd, won.since, most_bytes)


@contextmanager
def _kept(ballot: Ballot, lease: int) -> Iterator[None]:
    """Has a lease last while the block does."""
    over = Event()

    def keep() -> None:
        while not over.wait(_LEASE_SECONDS / 4):
            with suppress(errors.StateUnavailable):
                ballot.keep(lease, _LEASE_SECONDS / 4)

    keeper = Thread(target=keep, name="keeping the lease")
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        ballot.resign(lease)
