"""Files of gateways that share a directory, while others come and go, and what is left of them."""

import io
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serverlessllm.v1 import tenant_service_pb2 as pb

from sllm import errors
from sllm.gateway.files import FileStore
from sllm.gateway.own_directory import OwnDirectory
from tests.client.fake_control import FakeControl
from tests.gateway.conftest import Open

ID = "file-" + "0" * 32


def test_files_come_and_go_while_others_look(tmp_path: Path) -> None:
    stores = [FileStore(tmp_path, 1 << 20) for _ in range(2)]
    over = threading.Event()

    def work(store: FileStore) -> None:
        for _ in range(60):
            store.delete(store.add(io.BytesIO(b"x"), "a", "batch").file_id)

    def look(store: FileStore) -> None:
        while not over.is_set():
            store.all()

    with ThreadPoolExecutor() as pool:
        looking = [pool.submit(look, one) for one in stores]
        working = [pool.submit(work, one) for one in (*stores, *stores)]
        for one in working:
            one.result()
        over.set()
        for one in looking:
            one.result()
    assert [one.name for one in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_what_is_no_file_disturbs_none(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{ID}.json").write_text(text)
    store = FileStore(tmp_path, 100)
    added = store.add(io.BytesIO(b"x"), "a", "batch")
    assert store.all() == [added]
    with pytest.raises(errors.SourceNotFound):
        store.get(ID)


def test_one_tenant_leaves_as_much_as_it_has(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 100)
    store.add(io.BytesIO(b"x" * 50), "a", "batch", "acme")
    with pytest.raises(errors.NoCapacity, match="tenant acme have 50 bytes"):
        store.add(io.BytesIO(b"x"), "b", "batch", "acme")
    store.add(io.BytesIO(b"x" * 25), "c", "batch", "zebra")
    store.add(io.BytesIO(b"x" * 25), "d", "batch")  # who runs it may have what there is
    with pytest.raises(errors.NoCapacity, match="100 bytes together"):
        store.add(io.BytesIO(b"x"), "e", "batch")


def test_uploads_together_do_not_pass_the_bound(tmp_path: Path) -> None:
    stores = [FileStore(tmp_path, 100) for _ in range(2)]

    def add(number: int) -> bool:
        try:
            stores[number % 2].add(io.BytesIO(b"x" * 40), "a", "batch")
        except errors.NoCapacity:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        assert sum(pool.map(add, range(8))) == 2


class _Breaks(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise OSError("it broke")


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path, 100)
    with pytest.raises(OSError, match="it broke"):
        store.add(_Breaks(b"x" * 80), "a", "batch")
    store.add(io.BytesIO(b"x" * 80), "a", "batch")


def test_what_was_left_by_the_killed_goes(tmp_path: Path) -> None:
    left = tmp_path / f"{ID}.bin"
    left.write_bytes(b"x" * 90)
    store = FileStore(tmp_path, 100)
    with pytest.raises(errors.NoCapacity):
        store.add(io.BytesIO(b"x" * 80), "a", "batch")
    os.utime(left, (0, 0))
    store.add(io.BytesIO(b"x" * 80), "a", "batch")
    assert not left.exists()


def test_first_files_share_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = FileStore(None, 1 << 20)
    with ThreadPoolExecutor() as pool:
        made = [*pool.map(lambda _: store.add(io.BytesIO(b"x"), "a", "batch"), range(8))]
    assert {one.file_id for one in store.all()} == {one.file_id for one in made}
    assert len(list(tmp_path.iterdir())) == 1
    store.close()
    assert not list(tmp_path.iterdir())


def test_directories_of_the_killed_are_removed(tmp_path: Path) -> None:
    made = "import sys, os; from pathlib import Path; from sllm.gateway.own_directory import *\n"
    made += "OwnDirectory(Path(sys.argv[1])); os._exit(1)"
    subprocess.run([sys.executable, "-c", made, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    living = OwnDirectory(tmp_path)
    other = OwnDirectory(tmp_path)
    assert set(tmp_path.iterdir()) == {living.path, other.path}


PART = b'--a\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
FORMS: dict[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", b"x"),
    "no part": ("multipart/form-data; boundary=a", b"--a\r\nbad"),
    "no start": ("multipart/form-data; boundary=a", b"nothing of it"),
    "two files": ("multipart/form-data; boundary=a", PART * 2 + b"--a--\r\n"),
    "no name": (
        "multipart/form-data; boundary=a",
        b"--a\r\ncontent-disposition: form-data\r\n\r\nx\r\n--a--\r\n",
    ),
    "fields": ("application/x-www-form-urlencoded", b"file=a&purpose=batch"),
}


@pytest.mark.parametrize("what", FORMS)
async def test_what_is_no_form(http: httpx2.AsyncClient, what: str) -> None:
    kind, body = FORMS[what]
    answer = await http.post("/v1/files", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_ARGUMENT")


async def test_files_on_their_way_are_counted(opened: Open) -> None:
    url = await opened(max_arriving_bytes=100_000)
    async with httpx2.AsyncClient(base_url=url) as http:
        for size, status in ((200_000, 429), (50_000, 200), (60_000, 200)):
            files = {"file": ("a", b"x" * size)}
            answer = await http.post("/v1/files", data={"purpose": "batch"}, files=files)
            assert answer.status_code == status, answer.text


async def test_bodies_that_are_held_are_counted(opened: Open) -> None:
    url = await opened(max_held_bytes=1000)
    async with httpx2.AsyncClient(base_url=url) as http:
        for path in ("/v1/completions", "/serverlessllm.v1.ClusterService/ListNodes"):
            for size, refused in ((2000, True), (100, False), (950, False)):
                body = json.dumps({"foo": "x" * size}).encode()[:size]
                headers = {"content-type": "application/json"}
                answer = await http.post(path, content=body, headers=headers)
                assert (answer.status_code == 429) == refused, answer.text


def known_as(control: FakeControl, tenant: str, *, sees_all: bool = False) -> None:
    said = pb.ListTenantsResponse(caller_tenant=tenant, caller_sees_all=sees_all)
    control.reply("ListTenants", said)


async def upload(http: httpx2.AsyncClient) -> httpx2.Response:
    return await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")})


async def test_a_file_is_its_tenants_alone(http: httpx2.AsyncClient, control: FakeControl) -> None:
    known_as(control, "acme")
    file = (await upload(http)).json()["id"]
    body = {"completion_window": "24h", "endpoint": "/v1/completions", "input_file_id": file}
    asked: dict[str, Any] = {
        f"GET /v1/files/{file}": None,
        f"GET /v1/files/{file}/content": None,
        f"DELETE /v1/files/{file}": None,
        "POST /v1/batches": body,
    }
    nothing = []
    for one in asked:
        known_as(control, "zebra")
        method, path = one.split()
        answer = await http.request(method, path, json=asked[one])
        assert answer.status_code == 404, one
        nothing.append(answer.json()["error"]["message"].replace(file, "FILE"))
    assert len(set(nothing)) == 1
    for tenant, sees_all, seen in (("zebra", False, []), ("acme", False, [file])):
        known_as(control, tenant, sees_all=sees_all)
        assert [one["id"] for one in (await http.get("/v1/files")).json()["data"]] == seen
    known_as(control, "default", sees_all=True)
    assert (await http.delete(f"/v1/files/{file}")).status_code == 200


async def test_no_file_is_taken_or_told_of_without_a_key(
    http: httpx2.AsyncClient, control: FakeControl
) -> None:
    file = (await upload(http)).json()["id"]
    control.always["ListTenants"] = [errors.Unauthenticated("show a key")]
    assert (await upload(http)).status_code == 401
    for method, path in (
        ("GET", "/v1/files"),
        ("GET", f"/v1/files/{file}"),
        ("GET", f"/v1/files/{file}/content"),
        ("DELETE", f"/v1/files/{file}"),
        ("GET", f"/v1/files/{ID}"),
    ):
        assert (await http.request(method, path)).status_code == 401, path
