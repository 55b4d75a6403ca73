"""A client of etcd over the messages of `aetcd`, on channels of our own.

`aetcd` itself knows one endpoint, and no TLS. Methods block, and may be called in any thread.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import grpc
from aetcd import rpc as pb

from sllm import errors
from sllm.control.config import EtcdConfig
from sllm.control.etcd.keys import (
    Change,
    ChangedAt,
    Condition,
    CreatedAt,
    Entry,
    LeaseEnded,
    Outcome,
    Put,
)

Answer = TypeVar("Answer")

_CALL_SECONDS: Final = 2.0
"""One endpoint has so long to answer."""
_PAGE: Final = 500
"""Keys that are read at once."""
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),  # a cluster does not lie behind a proxy
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_ELSEWHERE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,  # also what a member says that has waited for the others in vain
    }
)
"""Codes after which another endpoint may answer. What was asked for may be done all the same."""
_NO_SPACE: Final = "database space exceeded"
_TOO_LARGE: Final = re.compile("request is too large|message larger than max")


class _Member:
    """One of its servers."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.kv = pb.KVStub(channel)
        self.leases = pb.LeaseStub(channel)


class Etcd:
    """One etcd, whichever of its members answers."""

    def __init__(self, config: EtcdConfig) -> None:
        """Opens no connection yet.

        Raises:
            OSError: A certificate or key cannot be read.
        """
        self.name = f"etcd at {','.join(config.endpoints)}"
        self._prefix = config.prefix
        self._members = [_Member(_channel(one, config)) for one in config.endpoints]
        self._current = 0
        self._turning = threading.Lock()

    def close(self) -> None:
        """Closes the connections."""
        for member in self._members:
            member.channel.close()

    # --- keys ---------------------------------------------------------------------------------

    def get(self, key: str, timeout: float = _CALL_SECONDS) -> Entry | None:
        """A key, as all members agree that it is.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        request = pb.RangeRequest(key=self._bytes(key))
        answer = self._call(lambda one, left: one.kv.Range(request, timeout=left), timeout)
        return next(map(self._entry, answer.kvs), None)

    def get_at(self, key: str, revision: int) -> Entry | None:
        """A key as it was at a revision, or None, if it was not there or that is forgotten.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        request = pb.RangeRequest(key=self._bytes(key), revision=revision)
        try:
            return next(map(self._entry, self._range(request).kvs), None)
        except errors.StateUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.OUT_OF_RANGE:
                return None  # compacted
            raise

    def under(self, prefix: str) -> list[Entry]:
        """All keys that begin so, in order, as they were at one moment.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        found: list[Entry] = []
        start, end, revision = self._bytes(prefix), _end_of(self._bytes(prefix)), 0
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=_PAGE, revision=revision)
            answer = self._range(request)
            found += map(self._entry, answer.kvs)
            if not answer.more:
                return found
            revision = revision or answer.header.revision
            start = answer.kvs[-1].key + b"\0"

    def page(self, prefix: str, start: str, count: int, *, bare: bool = False) -> list[Entry]:
        """At most `count` keys that begin with `prefix`, in order, from `start` on.

        `bare`: without their values.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        request = pb.RangeRequest(
            key=self._bytes(start),
            range_end=_end_of(self._bytes(prefix)),
            limit=count,
            keys_only=bare,
        )
        return [self._entry(one) for one in self._range(request).kvs]

    def present(self, keys: Sequence[str]) -> set[str]:
        """Which of some keys are there, at one moment; as many as one transaction takes.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        asked = [
            pb.RequestOp(request_range=pb.RangeRequest(key=self._bytes(key), count_only=True))
            for key in keys
        ]
        request = pb.TxnRequest(success=asked)
        answer = self._call(lambda one, left: one.kv.Txn(request, timeout=left), _CALL_SECONDS)
        counts = [one.response_range.count for one in answer.responses]
        return {key for key, count in zip(keys, counts, strict=True) if count}

    def commit(
        self,
        conditions: Iterable[Condition],
        changes: Iterable[Change],
        otherwise: Sequence[str] = (),
        timeout: float = _CALL_SECONDS,
    ) -> Outcome:
        """Makes all changes if all conditions hold; reads the keys in `otherwise` if not.

        Raises:
            errors.StateUnavailable: No member answers, and it may be done all the same: then the
                error says when to try again. Or etcd refuses, and it is not done.
            errors.InvalidArgument: It is larger than etcd takes.
            LeaseEnded: A key was to hang at a lease that has ended.
        """
        request = pb.TxnRequest(
            compare=[self._compare(one) for one in conditions],
            success=[self._operation(one) for one in changes],
            failure=[
                pb.RequestOp(request_range=pb.RangeRequest(key=self._bytes(key)))
                for key in otherwise
            ],
        )
        answer = self._call(lambda one, left: one.kv.Txn(request, timeout=left), timeout)
        if answer.succeeded:
            return Outcome(True, answer.header.revision)
        ranges = [one.response_range.kvs for one in answer.responses]
        found = tuple(next(map(self._entry, kvs), None) for kvs in ranges)
        return Outcome(False, answer.header.revision, found)

    # --- leases -------------------------------------------------------------------------------

    def grant(self, seconds: int, timeout: float = _CALL_SECONDS) -> int:
        """A lease that ends by itself after `seconds`, unless it is kept; returns its id.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        request = pb.LeaseGrantRequest(TTL=seconds)
        answer = self._call(lambda one, left: one.leases.LeaseGrant(request, timeout=left), timeout)
        return int(answer.ID)

    def keep(self, lease: int, timeout: float = _CALL_SECONDS) -> float:
        """Has a lease last for as long again; returns for how many seconds: 0 if it has ended.

        Raises:
            errors.StateUnavailable: No member answers.
        """

        def kept(member: _Member, left: float) -> Any:
            requests = iter([pb.LeaseKeepAliveRequest(ID=lease)])
            return next(member.leases.LeaseKeepAlive(requests, timeout=left))

        return float(self._call(kept, timeout).TTL)

    def revoke(self, lease: int) -> None:
        """Ends a lease, and with it the keys that hang at it; one that has ended is no error.

        Raises:
            errors.StateUnavailable: No member answers.
        """
        request = pb.LeaseRevokeRequest(ID=lease)
        try:
            self._call(
                lambda one, left: one.leases.LeaseRevoke(request, timeout=left),
                _CALL_SECONDS,
            )
        except LeaseEnded:
            return

    # --- calls --------------------------------------------------------------------------------

    def _range(self, request: Any) -> Any:
        return self._call(lambda one, left: one.kv.Range(request, timeout=left), _CALL_SECONDS)

    def _call(self, ask: Callable[["_Member", float], Answer], timeout: float) -> Answer:
        """What the first member answers that does, each being asked once within `timeout`."""
        deadline = time.monotonic() + timeout
        share = timeout / len(self._members)
        last: grpc.RpcError | None = None
        for _ in self._members:
            current = self._current
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return ask(self._members[current], max(min(left, share), left / 2))
            except grpc.RpcError as error:
                if error.code() not in _ELSEWHERE:
                    raise self._typed(error) from error
                last = error
                self._turn_from(current)
        raise errors.StateUnavailable(
            f"{self.name} does not answer: {last.details() if last else 'no time was left'}; "
            "a majority of its members has to run",
            retry_after=1.0,
        ) from last

    def _turn_from(self, member: int) -> None:
        with self._turning:
            if self._current == member:
                self._current = (member + 1) % len(self._members)

    def _typed(self, error: grpc.RpcError) -> Exception:
        said = f"{self.name} refuses: {error.details()}"
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                return LeaseEnded(said)
            case _ if _NO_SPACE in (error.details() or ""):
                return errors.StateUnavailable(
                    f"{said}: until its operator has made room, as docs/OPERATING.md tells, it "
                    "takes no change, and no deletion either; nothing was changed, and what runs "
                    "goes on",
                    metadata={"alarm": "NOSPACE"},
                )
            case _ if _TOO_LARGE.search(error.details() or ""):
                return errors.InvalidArgument(
                    f"{said}; it takes 1.5 MiB at once, unless --max-request-bytes gives it more"
                )
            case _:
                return errors.StateUnavailable(f"{said}; nothing was changed")

    # --- messages -----------------------------------------------------------------------------

    def _bytes(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _entry(self, kv: Any) -> Entry:
        key = kv.key.decode().removeprefix(self._prefix)
        return Entry(key, kv.value, kv.create_revision, kv.mod_revision)

    def _compare(self, one: Condition) -> Any:
        match one:
            case CreatedAt():
                return pb.Compare(
                    key=self._bytes(one.key),
                    target=pb.Compare.CREATE,
                    result=pb.Compare.EQUAL,
                    create_revision=one.revision,
                )
            case ChangedAt():
                return pb.Compare(
                    key=self._bytes(one.key),
                    target=pb.Compare.MOD,
                    result=pb.Compare.EQUAL,
                    mod_revision=one.revision,
                )

    def _operation(self, one: Change) -> Any:
        key = self._bytes(one.key)
        if isinstance(one, Put):
            put = pb.PutRequest(key=key, value=one.value, lease=one.lease)
            return pb.RequestOp(request_put=put)
        end = _end_of(key) if one.prefix else b""
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))


def _channel(endpoint: str, config: EtcdConfig) -> grpc.Channel:
    tls = config.tls
    if tls.ca is None:
        return grpc.insecure_channel(endpoint, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        tls.ca.read_bytes(),
        tls.key.read_bytes() if tls.key else None,
        tls.cert.read_bytes() if tls.cert else None,
    )
    return grpc.secure_channel(endpoint, credentials, options=_OPTIONS)


def _end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`, which ends in no 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
