"""The file in which an operator lists the sources that nodes may read, and what opens them.

TOML, one table for each:

    [[source]]
    url = "file:///models"

    [[source]]
    url = "s3://team-models/llama"
    options.endpoint = "https://objects.example.com"
    secrets.access_key_id = "/run/secrets/objects/id"  # files, which hold the values
    secrets.secret_access_key = "/run/secrets/objects/key"

    [[source]]
    url = "hf://Qwen"  # an organisation, or hf://Qwen/Qwen3-0.6B, or hf://*
    secrets.token = "/run/secrets/hub/token"

    [[source]]
    url = "https://*.example.com/weights"
    secrets.token = "/run/secrets/web/token"
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sllm.checkpoint.sources.policy import Access, SourceRule
from sllm.errors import InvalidArgument

SECRETS: Final[Mapping[str, frozenset[str]]] = {
    "file": frozenset(),
    "s3": frozenset({"access_key_id", "secret_access_key", "session_token"}),
    "gs": frozenset({"service_account_key"}),
    "az": frozenset({"account_key", "sas_token", "client_secret"}),
    "http": frozenset({"token"}),
    "https": frozenset({"token"}),
    "hf": frozenset({"token"}),
}
"""By scheme: what may open its sources."""
OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "s3": frozenset({"endpoint", "region"}),
    "gs": frozenset({"base_url"}),
    "az": frozenset({"account_name", "endpoint", "client_id", "tenant_id"}),
}


def read_policy_file(path: Path) -> tuple[SourceRule, ...]:
    """The sources that a file lists.

    Raises:
        InvalidArgument: It cannot be read, or says what makes no sense; never repeats a value.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"the list of sources {path} cannot be read: {error}") from error
    if set(content) != {"source"} or not isinstance(content["source"], list):
        raise InvalidArgument(f"{path}: list sources as [[source]] tables, and nothing else")
    return tuple(
        _rule(f"{path}: source {number}", entry)
        for number, entry in enumerate(content["source"], 1)
    )


def _rule(where: str, entry: object) -> SourceRule:
    if not isinstance(entry, dict) or not entry.keys() <= {"url", "secrets", "options"}:
        raise InvalidArgument(f"{where}: it may have url, secrets and options")
    scheme, host, path = _url(where, entry.get("url"))
    secrets = _named(where, "secrets", entry, SECRETS[scheme])
    options = _named(where, "options", entry, OPTIONS.get(scheme, frozenset()))
    files = {name: Path(value) for name, value in secrets.items()}
    for name, file in files.items():
        if not file.is_absolute():
            raise InvalidArgument(f"{where}: give {name} as the absolute path of a file with it")
    return SourceRule(scheme, host, path, Access(files, options))


def _url(where: str, text: object) -> tuple[str, str, tuple[str, ...]]:
    parts = urlsplit(text) if isinstance(text, str) else urlsplit("")
    if parts.scheme not in SECRETS:
        raise InvalidArgument(f"{where}: give its url, which begins with one of {_list(SECRETS)}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidArgument(f"{where}: its url may have no user, password, revision, ? or #")
    if bool(parts.netloc) == (parts.scheme == "file"):
        raise InvalidArgument(f"{where}: write its url as file:///PATH, or SCHEME://HOST/PATH")
    path = tuple(part for part in parts.path.split("/") if part)
    host = parts.netloc.lower() if parts.scheme != "hf" else parts.netloc
    return parts.scheme, host, ("/", *path) if parts.scheme == "file" else path


def _named(
    where: str, key: str, entry: Mapping[str, object], known: frozenset[str]
) -> dict[str, str]:
    values = entry.get(key, {})
    if not isinstance(values, dict) or not values.keys() <= known:
        raise InvalidArgument(f"{where}: its {key} may be {_list(known) or 'none'}")
    if not all(isinstance(value, str) for value in values.values()):
        raise InvalidArgument(f"{where}: its {key} are to be texts")
    return {str(name): str(value) for name, value in values.items()}


def _list(names: Mapping[str, object] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
