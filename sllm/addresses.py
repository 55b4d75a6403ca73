"""Addresses that anybody on the internet may connect to, and those that are somebody's own."""

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_OWN: Final = tuple(
    ipaddress.ip_network(one)
    for one in (
        "168.63.129.16/32",  # of each machine on Azure: its keeper, which knows its secrets
        "::/96",  # addresses of the older kind, written as they once were
        "::ffff:0:0:0/96",  # those that a machine translates for itself
        "64:ff9b:1::/48",  # those that a network translates for itself
        "fec0::/10",  # of one site
    )
)
"""What `ipaddress` calls global, and is a network's or a machine's own."""


def is_public(text: str) -> bool:
    """Whether an address belongs to the internet, and to no network or machine of its own."""
    return _is_public(ipaddress.ip_address(text.partition("%")[0]))


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (within := _within(address)):
        return _is_public(within)
    own = any(address in network for network in _OWN)
    return address.is_global and not address.is_multicast and not own


def _within(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The address of the older kind that a gateway would make of it."""
    translated = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
    return address.ipv4_mapped or address.sixtofour or translated
