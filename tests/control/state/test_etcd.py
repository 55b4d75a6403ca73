"""What only a store in etcd has to hold: changes whose answer is lost, and several writers."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd import rpc as pb

from sllm import errors
from sllm.control.config import EtcdConfig, TlsFiles
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import Delete, Outcome, Put
from sllm.control.state import etcd_writer
from sllm.control.state.etcd import EtcdStore
from sllm.control.state.store import ANSWER_SECONDS
from sllm.control.types.calls import UNASKED
from sllm.tls.identity import Role
from tests.control.shapes import call, deployment
from tests.etcd import EtcdServer, running_etcd
from tests.tls.certs import Certs

ONE = deployment("one")


@pytest.fixture
def config(etcd_server: EtcdServer) -> EtcdConfig:
    return etcd_server.config()


@pytest.fixture
def etcd(config: EtcdConfig) -> Iterator[Etcd]:
    etcd = Etcd(config)
    yield etcd
    etcd.close()


def test_a_change_whose_answer_is_lost_is_made_once(
    etcd_server: EtcdServer, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """etcd stands still for longer than one try takes, and then makes what waits there."""
    monkeypatch.setattr(etcd_writer, "_PATIENCE_SECONDS", 60.0)
    store = EtcdStore(etcd)
    tried = threading.Semaphore(0)
    commit = etcd.commit

    def impatient(conditions: Any, changes: Any, otherwise: Any) -> Outcome:
        tried.release()
        return commit(conditions, changes, otherwise, timeout=0.3)

    monkeypatch.setattr(etcd, "commit", impatient)
    with ThreadPoolExecutor(1) as threads:
        etcd_server.pause()
        try:
            putting = threads.submit(store.put, ONE, call(""), b"answer", 1.0)
            for _ in range(3):
                assert tried.acquire(timeout=30)
        finally:
            etcd_server.go_on()
        assert putting.result() == b"answer"
    assert store.deployments() == [ONE]
    store.delete("one", UNASKED, 1.0)
    assert store.deployments() == [], "a try from before was made after all"
    assert store.put(ONE, call("id"), b"answer", 1.0) == b"answer", "one from here is no other's"


def test_who_does_not_know_whether_a_change_was_made_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(etcd_writer, "_PATIENCE_SECONDS", 0.5)
    in_doubt = threading.Event()
    with running_etcd() as server, closing(Etcd(server.config())) as etcd:
        store = EtcdStore(etcd, in_doubt=in_doubt.set)
        server.stop()
        with pytest.raises(errors.StateUnavailable, match="does not answer"):
            store.put(ONE, call(""), b"answer", 1.0)
        assert in_doubt.is_set()
        with pytest.raises(errors.StateUnavailable):
            store.check()


def test_what_etcd_refuses_is_not_in_doubt() -> None:
    """It has no room."""
    in_doubt = threading.Event()
    small = running_etcd("--quota-backend-bytes=1000000")
    with small as server, closing(Etcd(server.config())) as etcd:
        store = EtcdStore(etcd, in_doubt=in_doubt.set)
        refusal = _until_refused(store)
        assert "space exceeded" in refusal.message
        assert refusal.retry_after is None
        assert not in_doubt.is_set()
        assert store.recall(call("r0")) == LARGE


LARGE = bytes(100_000)


def _until_refused(store: EtcdStore) -> errors.StateUnavailable:
    for number in range(100):
        try:
            store.remember(call(f"r{number}"), LARGE, 1.0)
        except errors.StateUnavailable as error:
            return error
    pytest.fail("it takes more than its quota")


def test_only_who_leads_changes_anything(etcd: Etcd) -> None:
    leads_since = etcd.commit([], [Put("leader", b"first")]).revision
    first = EtcdStore(etcd, leads_since)
    first.put(ONE, call("id"), b"answer", 1.0)
    etcd.commit([], [Delete("leader")])
    with pytest.raises(errors.NotLeader, match="nothing was changed"):
        first.put(deployment("two"), call("late"), b"answer", 1.0)
    second = EtcdStore(etcd, etcd.commit([], [Put("leader", b"second")]).revision)
    with pytest.raises(errors.NotLeader):
        first.delete("one", UNASKED, 1.0)
    assert second.deployments() == [ONE]
    assert second.recall(call("late")) is None
    second.put(deployment("two"), call("id2"), b"answer", 1.0)
    assert [one.name for one in second.deployments()] == ["one", "two"]


def _loses_its_answer(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]
) -> None:
    """The next change is made, and its answer is lost; before it is tried again `then` happens."""
    commit = etcd.commit

    def lost(*asked: Any) -> Outcome:
        monkeypatch.setattr(etcd, "commit", commit)
        commit(*asked)
        then()
        raise errors.StateUnavailable("no answer", retry_after=1.0)

    monkeypatch.setattr(etcd, "commit", lost)


@pytest.mark.parametrize("terms", [1, 2])
def test_who_leads_no_more_knows_what_he_has_changed_before(
    config: EtcdConfig, etcd: Etcd, monkeypatch: pytest.MonkeyPatch, terms: int
) -> None:
    """Its answer is lost, and others have led and written before it is asked about."""
    first = EtcdStore(etcd, etcd.commit([], [Put("leader", b"first")]).revision)
    first.put(ONE, call("id"), b"answer", 1.0)
    with closing(Etcd(config)) as elsewhere:

        def others_lead() -> None:
            for number in range(terms):
                elsewhere.commit([], [Delete("leader")])
                since = elsewhere.commit([], [Put("leader", b"other")]).revision
                EtcdStore(elsewhere, since).put(deployment("two"), call(f"{number}"), b"", 1.0)

        _loses_its_answer(etcd, monkeypatch, others_lead)
        if terms == 1:
            first.delete("one", UNASKED, 1.0)
        else:
            with pytest.raises(errors.StateUnavailable, match="nobody knows"):
                first.delete("one", UNASKED, 1.0)
        assert [one.name for one in first.deployments()] == ["two"]
        with pytest.raises(errors.NotLeader, match="nothing was changed"):
            first.delete("two", UNASKED, 1.0)


def test_who_came_too_late_has_changed_nothing_whoever_wrote_since(etcd: Etcd) -> None:
    first = EtcdStore(etcd, etcd.commit([], [Put("leader", b"first")]).revision)
    first.put(ONE, call("id"), b"answer", 1.0)
    etcd.commit([], [Delete("leader")])
    second = EtcdStore(etcd, etcd.commit([], [Put("leader", b"second")]).revision)
    second.put(deployment("two"), call(""), b"", 1.0)
    with pytest.raises(errors.NotLeader, match="nothing was changed"):
        first.delete("one", UNASKED, 1.0)
    assert len(second.deployments()) == 2


def test_a_key_is_read_as_it_was_unless_that_is_forgotten(etcd: Etcd, config: EtcdConfig) -> None:
    before = etcd.commit([], [Put("a", b"before")]).revision
    after = etcd.commit([], [Put("a", b"after")]).revision
    then = etcd.get_at("a", before)
    assert then is not None
    assert then.value == b"before"
    assert etcd.get_at("a", before - 1) is None
    with grpc.insecure_channel(config.endpoints[0]) as channel:
        pb.KVStub(channel).Compact(pb.CompactionRequest(revision=after), timeout=10)
    assert etcd.get_at("a", before) is None


def test_of_many_who_repeat_a_call_at_once_one_changes_something(config: EtcdConfig) -> None:
    """Whoever is answered is answered the same, and that is what is stored."""

    def put(size: int) -> bytes:
        with closing(Etcd(config)) as etcd:
            one, answer = deployment("one", size_bytes=size), str(size).encode()
            return EtcdStore(etcd).put(one, call("id"), answer, 1.0)

    with ThreadPoolExecutor(4) as threads:
        (answer,) = set(threads.map(put, range(1, 9)))
    with closing(Etcd(config)) as etcd:
        (stored,) = EtcdStore(etcd).deployments()
        assert stored.model.size_bytes == int(answer)


def test_answers_go_by_themselves_after_a_week(config: EtcdConfig, etcd: Etcd) -> None:
    store = EtcdStore(etcd)
    for request_id, now in (("a", 1.0), ("b", 2.0), ("c", 100_000.0)):
        store.put(ONE, call(request_id), b"answer", now)
    with grpc.insecure_channel(config.endpoints[0]) as channel:
        prefix = f"{config.prefix}answers/".encode()
        found = pb.KVStub(channel).Range(pb.RangeRequest(key=prefix, range_end=prefix + b"~"))
        leases = [one.lease for one in found.kvs]
        assert leases[0] == leases[1] != leases[2], "one lease a day"
        for lease in leases:
            asked = pb.LeaseTimeToLiveRequest(ID=lease)
            assert pb.LeaseStub(channel).LeaseTimeToLive(asked).grantedTTL >= ANSWER_SECONDS
        pb.LeaseStub(channel).LeaseRevoke(pb.LeaseRevokeRequest(ID=leases[2]))
    store.put(ONE, call("d"), b"answer", 100_001.0)
    assert store.recall(call("c", "whatever")) is None
    assert store.recall(call("d")) == b"answer", "its lease had ended before"


def test_what_is_gone_is_told(etcd: Etcd) -> None:
    store = EtcdStore(etcd)
    etcd.commit([], [Delete("", prefix=True)])
    with pytest.raises(errors.StateUnavailable, match="is gone"):
        store.check()


def test_what_no_version_knows_is_left_alone(etcd: Etcd) -> None:
    etcd.commit([], [Put("format", b"2")])
    with pytest.raises(errors.StartFailed, match="in format 2"):
        EtcdStore(etcd)


def test_a_part_of_a_store_is_none(etcd: Etcd) -> None:
    EtcdStore(etcd).put(ONE, call(""), b"answer", 1.0)
    etcd.commit([], [Delete("format")])
    with pytest.raises(errors.StartFailed, match="a part of what was to be moved"):
        EtcdStore(etcd)


def test_a_record_that_makes_no_sense_is_told(etcd: Etcd) -> None:
    store = EtcdStore(etcd)
    etcd.commit([], [Put("deployments/one", b'{"spec": 1}')])
    with pytest.raises(errors.StartFailed, match=r"a deployment in etcd at .* cannot be read"):
        store.deployments()


def test_what_is_larger_than_etcd_takes_is_refused(etcd: Etcd) -> None:
    store = EtcdStore(etcd)
    with pytest.raises(errors.InvalidArgument, match=r"1\.5 MiB"):
        store.remember(call("id"), bytes(2 << 20), 1.0)
    store.remember(call("id"), b"small", 1.0)
    assert store.recall(call("id")) == b"small"


def test_another_member_answers_where_one_does_not(etcd_server: EtcdServer) -> None:
    endpoints = ("127.0.0.1:1", etcd_server.endpoint)
    with closing(Etcd(EtcdConfig(endpoints, prefix="/two/"))) as etcd:
        store = EtcdStore(etcd)
        store.put(ONE, call("id"), b"answer", 1.0)
        assert store.deployments() == [ONE]


def test_what_has_more_keys_than_a_page_is_read_whole(etcd: Etcd) -> None:
    names = [f"{number:04}" for number in range(1_203)]
    for start in range(0, len(names), 100):
        etcd.commit([], [Put(f"k/{name}", b"") for name in names[start : start + 100]])
    assert [one.key for one in etcd.under("k/")] == [f"k/{name}" for name in names]


def test_etcd_and_this_client_may_know_each_other_by_certificates(tmp_path: Path) -> None:
    certs = Certs(tmp_path)
    own = certs.of(Role.CONTROL)
    files = [f"--cert-file={own / 'tls.crt'}", f"--key-file={own / 'tls.key'}"]
    trust = ["--client-cert-auth", f"--trusted-ca-file={certs.authority}"]
    with running_etcd(*files, *trust, scheme="https") as server:
        tls = TlsFiles(certs.authority, own / "tls.crt", own / "tls.key")
        for given, answers in ((tls, True), (TlsFiles(certs.authority), False)):
            config = EtcdConfig((server.endpoint,), tls=given)
            with closing(Etcd(config)) as etcd:
                if answers:
                    EtcdStore(etcd).put(ONE, call("id"), b"answer", 1.0)
                else:
                    with pytest.raises(errors.StateUnavailable):
                        etcd.get("format")
