"""Models in S3, as moto's server speaks it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest
from aiohttp import web

from sllm.errors import SourceForbidden, SourceNotFound, SourceUnavailable
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form
from tests.checkpoint.checkpoints import assert_pooling, import_model, write_model, write_pooling
from tests.checkpoint.remote.sources import HASTY, bring
from tests.checkpoint.remote.web import Hit, WebServer
from tests.node.store.test_packed_forms import FORM, made
from tests.node.stores import Bench
from tests.s3 import BUCKET, serving

SECRET = "geheimer-schluessel"


@pytest.fixture(scope="module")
def environment() -> Iterator[Mapping[str, str]]:
    with serving(SECRET) as environment:
        yield environment


@pytest.fixture
def s3(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that the environment leads to."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return BUCKET


def upload(directory: Path, bucket: str, prefix: str) -> str:
    client = boto3.Session().client("s3")
    for path in directory.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}{path.relative_to(directory)}")
    return f"s3://{bucket}/{prefix}"


@pytest.mark.parametrize("prefix", ["", "a/b c/tiny/"])
def test_a_model_comes_as_from_a_directory(s3: str, tmp_path: Path, prefix: str) -> None:
    local = write_model(tmp_path / "local")
    url = upload(local, s3, prefix)
    assert bring(url, tmp_path).manifest == import_model(local, tmp_path / "import")


def test_how_a_model_pools_comes_along(s3: str, tmp_path: Path) -> None:
    write_pooling(write_model(tmp_path / "local"))
    brought = bring(upload(tmp_path / "local", s3, "pooling/"), tmp_path)
    assert_pooling(brought.manifest, brought.directory)


def test_a_packed_checkpoint_stays_what_it_is(s3: str, tmp_path: Path) -> None:
    manifest = import_model(write_model(tmp_path / "local", seed=1), tmp_path / "packed")
    assert bring(upload(tmp_path / "packed", s3, "packed/"), tmp_path).manifest == manifest


async def test_what_was_made_ready_of_it_comes_in_its_place(s3: str, tmp_path: Path) -> None:
    import_model(write_model(tmp_path / "local", seed=1), tmp_path / "packed")
    made(tmp_path / "packed")
    url = upload(tmp_path / "packed", s3, "ready/")
    bench = Bench(tmp_path, HASTY)
    await bench.open()
    lease = await bench.store.promote(url, None, Tier.DRAM, form=Form(FORM.name))
    assert lease.record.form == FORM.name
    lease.release()
    await bench.close()


def test_an_empty_prefix_is_not_found(s3: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="s3://models/nothing/here holds no files"):
        bring(f"s3://{s3}/nothing/here", tmp_path)


def test_a_bucket_that_is_not_there_is_not_found(s3: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="s3://others/a does not exist"):
        bring("s3://others/a", tmp_path)


def test_a_store_that_is_gone_is_unavailable_and_keeps_its_secrets(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable, match="try again") as caught:
        bring(f"s3://{s3}/a", tmp_path)
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_forbidden(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    web_server: WebServer,
    status: int,
) -> None:
    async def refuse(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
        return web.Response(status=status, text="<Error><Code>AccessDenied</Code></Error>")

    web_server.fault = refuse
    monkeypatch.setenv("AWS_ENDPOINT_URL", web_server.url)
    with pytest.raises(SourceForbidden, match="credentials") as caught:
        bring(f"s3://{s3}/a", tmp_path)
    assert SECRET not in repr(caught.value)
    assert SECRET not in repr(web_server.hits), "the secret itself was sent"


@pytest.fixture
def profile(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Credentials that are nowhere but in AWS's own files, under a name; gives the key's id."""
    (tmp_path / "credentials").write_text(
        "[someone-else]\naws_access_key_id = other\naws_secret_access_key = other\n"
        f"[team]\naws_access_key_id = of-the-team\naws_secret_access_key = {SECRET}\n"
    )
    (tmp_path / "config").write_text("[profile team]\nregion = us-east-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    return "of-the-team"


def test_a_profile_of_awss_own_files_is_used(s3: str, tmp_path: Path, profile: str) -> None:
    local = write_model(tmp_path / "local")
    url = upload(local, s3, "by-profile/")
    assert bring(url, tmp_path).manifest == import_model(local, tmp_path / "import")


def test_requests_are_signed_with_the_profiles_key(
    s3: str, tmp_path: Path, profile: str, web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed: list[str] = []

    async def note(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
        signed.append(request.headers.get("Authorization", ""))
        return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")

    web_server.fault = note
    monkeypatch.setenv("AWS_ENDPOINT_URL", web_server.url)
    with pytest.raises(SourceForbidden):
        bring(f"s3://{s3}/a", tmp_path)
    assert signed
    assert all(f"Credential={profile}/" in one for one in signed)
    assert not any(SECRET in one for one in signed)
