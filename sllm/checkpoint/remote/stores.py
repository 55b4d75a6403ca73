"""obstore's stores for URLs: credentials and endpoints come from where each SDK looks for them."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from sllm.checkpoint.remote.failures import typed_failures
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.sources.policy import Access
from sllm.checkpoint.sources.remote_urls import RemoteDirectory
from sllm.errors import InvalidSource

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3CredentialProvider


def open_store(
    source: RemoteDirectory,
    options: RemoteOptions,
    access: Access | None = None,
    proxy: str | None = None,
) -> "ObjectStore":
    """The store whose root is the source's directory. Asks no server.

    Args:
        source: the directory.
        options: bounds.
        access: what opens it, beside what the environment says of the service.
        proxy: the URL of the proxy that web servers are asked through; None: as the environment
            says.

    Raises:
        SourceUnavailable, InvalidSource: what the environment says of the service makes no sense.
    """
    access = access or Access()
    with typed_failures(source.url):
        if source.scheme in ("http", "https"):
            return open_web(source.url, options, bearer(access), proxy)
        # As configuration, and not as client options: those would hide what the environment says.
        config: Any = {**_timeouts(options), **_given(access)}
        retries, prefix = _retries(options), source.path or None
        if source.scheme == "s3":
            return S3Store(
                source.host,
                prefix=prefix,
                config=config,
                retry_config=retries,
                credential_provider=None if access.secrets else _aws_profile(),
            )
        if source.scheme == "gs":
            return GCSStore(source.host, prefix=prefix, config=config, retry_config=retries)
        return AzureStore(source.host, prefix=prefix, config=config, retry_config=retries)


def open_web(
    url: str, options: RemoteOptions, headers: dict[str, str], proxy: str | None = None
) -> "ObjectStore":
    """The store of a directory of a web server.

    Args:
        url: the directory's.
        options: bounds.
        headers: sent with every request; those that authorise are not sent on to other hosts.
        proxy: as `open_store`.
    """
    client: ClientConfig = {
        **_timeouts(options),
        "allow_http": url.startswith("http://"),
        "default_headers": headers,
    }
    if proxy:
        client["proxy_url"] = proxy
    return HTTPStore(url, client_options=client, retry_config=_retries(options))


def bearer(access: Access) -> dict[str, str]:
    """The header that a source's token goes into, if it has one."""
    token = access.secret("token")
    return {"authorization": f"Bearer {token}"} if token else {}


def _given(access: Access) -> dict[str, Any]:
    """What a source's own list entry says, in the names of its service."""
    secrets = {name: access.secret(name) for name in access.secrets}
    plain = access.options.get("endpoint", "").startswith("http://")
    return {**access.options, **secrets, **({"allow_http": True} if plain else {})}


def _timeouts(options: RemoteOptions) -> "ClientConfig":
    return {
        "connect_timeout": _duration(options.connect_seconds),
        "read_timeout": _duration(options.stall_seconds),
        "timeout": _duration(options.request_seconds),
    }


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def _retries(options: RemoteOptions) -> "RetryConfig":
    return {
        "max_retries": options.retries,
        "retry_timeout": timedelta(seconds=options.retry_seconds),
        "backoff": {"max_backoff": timedelta(seconds=options.backoff_seconds)},
    }


def _aws_profile() -> "S3CredentialProvider | None":
    """Profiles are AWS's own files; its own library reads them, if a profile is asked for."""
    if not os.environ.get("AWS_PROFILE"):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise InvalidSource(
            "AWS_PROFILE is set, and reading profiles needs boto3: install it beside sllm, or give "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    return Boto3CredentialProvider()
