import pytest

from sllm.checkpoint.sources.remote_urls import HubRepository, RemoteDirectory
from sllm.checkpoint.sources.sources import parse_source
from sllm.errors import InvalidSource


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("s3://bucket/a/b/", RemoteDirectory("s3", "bucket", "a/b")),
        ("s3://bucket", RemoteDirectory("s3", "bucket", "")),
        ("gs://bucket/a", RemoteDirectory("gs", "bucket", "a")),
        ("az://container/a", RemoteDirectory("az", "container", "a")),
        ("http://host:81/a/", RemoteDirectory("http", "host:81", "a")),
        ("https://host/a", RemoteDirectory("https", "host", "a")),
        ("hf://org/model", HubRepository("org/model", None)),
        ("hf://gpt2", HubRepository("gpt2", None)),
        ("hf://org/model@refs/pr/1", HubRepository("org/model", "refs/pr/1")),
    ],
)
def test_urls_name_places(text: str, place: RemoteDirectory | HubRepository) -> None:
    assert parse_source(text) == place
    assert place.url == text.rstrip("/")
    assert parse_source(place.url) == place


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("s3://", "no bucket"),
        ("https:///a", "no bucket or host"),
        ("https://host/a?token=geheim", "directory alone"),
        ("https://host/a#geheim", "directory alone"),
        ("https://me:geheim@host/a", "credentials belong in the node's environment"),
        ("s3://me:geheim@bucket/a", "credentials belong in the node's environment"),
        ("hf://", "hf://ORGANISATION/MODEL"),
        ("hf://a/b/c", "hf://ORGANISATION/MODEL"),
        ("ftp://host/a", "az://, http://"),
    ],
)
def test_others_are_refused_without_repeating_secrets(text: str, says: str) -> None:
    with pytest.raises(InvalidSource, match=says) as caught:
        parse_source(text)
    assert "geheim" not in str(caught.value)
