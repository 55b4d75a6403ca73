"""Where a server may listen: beyond this machine with certificates, or because somebody says so."""

import ipaddress

import structlog

from sllm import errors

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host of this name. Other names are not looked up."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check(host: str, *, secured: bool, insecure: bool) -> None:
    """Refuses to listen beyond this machine without certificates; says so in the log if it must be.

    Args:
        host: That is listened on.
        secured: Whether there are certificates.
        insecure: Whether it has been said that there need not be.

    Raises:
        errors.InvalidArgument: It was not.
    """
    if secured or is_loopback(host):
        return
    if not insecure:
        raise errors.InvalidArgument(
            f"{host} is reached from beyond this machine, and there are no certificates: give a "
            "directory of them (--tls; `sllm certs` makes them), or say --insecure, and whoever "
            "reaches the port may read and do everything"
        )
    log.warning("listening.insecure", host=host)
