"""Which sources an operator's list lets a node read, and what such a list may say."""

import os
from pathlib import Path

import pytest

from sllm.checkpoint.sources.policy import EVERYTHING, SourcePolicy
from sllm.checkpoint.sources.policy_file import read_policy_file
from sllm.checkpoint.sources.sources import parse_source
from sllm.errors import (
    InvalidArgument,
    InvalidSource,
    SourceNotAllowed,
    SourceNotFound,
    SourceUnavailable,
)
from tests.checkpoint.checkpoints import write_model

OTHER = 54321
LIST = """
[[source]]
url = "s3://team-models/llama"
secrets.access_key_id = "{secret}"
options.endpoint = "https://objects.example.com"

[[source]]
url = "hf://Qwen"

[[source]]
url = "hf://mistralai/Mistral-7B"

[[source]]
url = "https://*.example.com/weights"

[[source]]
url = "http://10.1.2.3:8080"

[[source]]
url = "gs://*"

[[source]]
url = "file://{root}"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory where sources may lie, with one in it."""
    write_model(tmp_path / "models" / "one")
    return tmp_path / "models"


@pytest.fixture
def policy(tmp_path: Path, root: Path) -> SourcePolicy:
    (tmp_path / "secret").write_text("s3cr3t\n")
    return SourcePolicy(read_policy_file(listed(tmp_path, LIST)))


def listed(directory: Path, text: str) -> Path:
    """A list of sources, with the paths of `directory` in it."""
    path = directory / "sources.toml"
    values = {"{root}": directory / "models", "{secret}": directory / "secret"}
    for name, value in values.items():
        text = text.replace(name, str(value))
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "url",
    [
        "s3://team-models/llama",
        "s3://team-models/llama/8b/",
        "hf://Qwen/Qwen3-0.6B@main",
        "hf://mistralai/Mistral-7B",
        "https://a.example.com/weights/x",
        "https://A.B.EXAMPLE.com:443/weights",
        "http://10.1.2.3:8080/anything",
        "gs://whatever/x",
    ],
)
def test_what_is_listed_may_be_read(policy: SourcePolicy, url: str) -> None:
    policy.admit(parse_source(url))


@pytest.mark.parametrize(
    "url",
    [
        "s3://team-models/llamas",
        "s3://team-models",
        "s3://other/llama",
        "hf://qwen2/x",
        "hf://mistralai/Mistral-7B-v2",
        "https://example.com/weights",
        "https://aexample.com/weights",
        "http://a.example.com/weights",
        "https://a.example.com:444/weights",
        "https://a.example.com/weights/../private",
        "https://a.example.com/weights/%2e%2e/private",
        "https://a.example.com/weights/%252e%252e/private",
        "https://a.example.com/weights/..\\private",
        "https://evil.test\\.example.com/weights",
        "http://10.1.2.3:8081/anything",
        "az://container/x",
        "/etc",
        "file:///",
    ],
)
def test_all_else_is_refused(policy: SourcePolicy, url: str) -> None:
    with pytest.raises(SourceNotAllowed):
        policy.admit(parse_source(url))


def test_directories_are_those_that_links_lead_to(policy: SourcePolicy, root: Path) -> None:
    write_model(root.parent / "elsewhere")
    (root / "out").symlink_to(root.parent / "elsewhere")
    (root.parent / "into").symlink_to(root / "one")
    policy.admit(parse_source(str(root / "one")))
    policy.admit(parse_source(str(root.parent / "into")))
    for outside in (root / "out", root / "one" / ".." / ".." / "elsewhere"):
        with pytest.raises(SourceNotAllowed):
            policy.admit(parse_source(str(outside)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_others_are_refused(policy: SourcePolicy, root: Path) -> None:
    (root.parent / "private").write_text("{}")
    os.chown(root.parent / "private", OTHER, OTHER)
    (root / "one" / "generation_config.json").hardlink_to(root.parent / "private")
    with pytest.raises(SourceNotAllowed, match="belongs to another user"):
        policy.admit(parse_source(str(root / "one")))
    os.chown(root, OTHER, OTHER)
    policy.admit(parse_source(str(root / "one")))
    form = root / "one" / "forms" / "engine"
    form.mkdir(parents=True)
    os.chown(root.parent / "private", OTHER + 1, OTHER + 1)
    (root / "one" / "generation_config.json").unlink()
    (form / "form.json").hardlink_to(root.parent / "private")
    with pytest.raises(SourceNotAllowed, match="belongs to another user"):
        policy.admit(parse_source(str(root / "one")))


def test_a_root_that_this_node_lacks_holds_no_source(policy: SourcePolicy, root: Path) -> None:
    root.rename(root.parent / "unmounted")
    with pytest.raises(SourceNotFound):
        policy.admit(parse_source(str(root / "one")))


def test_a_link_in_a_circle_is_no_source(policy: SourcePolicy, root: Path) -> None:
    (root / "circle").symlink_to("circle")
    with pytest.raises(InvalidSource):
        policy.admit(parse_source(str(root / "circle")))


def test_without_a_list_all_may_be_read_that_is_written_plainly(root: Path) -> None:
    for policy in (SourcePolicy(), EVERYTHING):
        policy.admit(parse_source(str(root / "one")))
        policy.admit(parse_source("s3://bucket/model"))
        with pytest.raises(SourceNotAllowed):
            policy.admit(parse_source("http://host/a/%2e%2e/b"))


def test_private_addresses_are_for_hosts_that_are_named(policy: SourcePolicy) -> None:
    assert policy.may_be_private("10.1.2.3")
    assert not policy.may_be_private("a.example.com")
    assert not SourcePolicy().may_be_private("localhost")
    assert EVERYTHING.may_be_private("localhost")


def test_secrets_are_read_when_they_are_used(policy: SourcePolicy, tmp_path: Path) -> None:
    access = policy.access(parse_source("s3://team-models/llama"))
    assert access.secret("access_key_id") == "s3cr3t"
    assert access.secret("session_token") is None
    assert access.options == {"endpoint": "https://objects.example.com"}
    (tmp_path / "secret").write_text("rotated")
    assert access.secret("access_key_id") == "rotated"
    (tmp_path / "secret").unlink()
    with pytest.raises(SourceUnavailable, match="access_key_id"):
        access.secret("access_key_id")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[source", "cannot be read"),
        ("x = 1", r"list sources as \[\[source\]\]"),
        ("source = 1", r"list sources as \[\[source\]\]"),
        ("[[source]]", "give its url"),
        ("[[source]]\nurl = 1", "give its url"),
        ('[[source]]\nurl = "ftp://x/y"', "give its url"),
        ('[[source]]\nurl = "s3://u:p@b/y"', "no user"),
        ('[[source]]\nurl = "https://b/y?sig=1"', "no user"),
        ('[[source]]\nurl = "hf://a/b@main"\nfoo = 1', "may have url, secrets and options"),
        ('[[source]]\nurl = "s3:///y"', "SCHEME://HOST"),
        ('[[source]]\nurl = "file://host/y"', "file:///PATH"),
        ('[[source]]\nurl = "s3://b"\nsecrets.password = "/x"', "its secrets may be access_key_id"),
        ('[[source]]\nurl = "file:///b"\nsecrets.token = "/x"', "its secrets may be none"),
        ('[[source]]\nurl = "hf://b"\nsecrets.token = "hf_planted"', "absolute path"),
        ('[[source]]\nurl = "hf://b"\nsecrets.token = 1', "texts"),
        ('[[source]]\nurl = "hf://b"\noptions.endpoint = "x"', "its options may be none"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint) as refused:
        read_policy_file(listed(tmp_path, text))
    assert "planted" not in str(refused.value)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        read_policy_file(tmp_path / "none")
