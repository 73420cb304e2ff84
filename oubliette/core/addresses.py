"""Which network addresses are public: what the daemon may connect to on somebody's word."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""The only IPv6 addresses that are routed at all: whatever carries an IPv4 address in another way is outside of it."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NOT_PUBLIC: Final = (
    # 192.0.0.0/24 is for protocols (a cloud's metadata service lies in it), 192.88.99.0/24 was 6to4's; the standard
    # library of older Pythons takes both for public. 168.63.129.16 is public and means a virtual machine's own host.
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv4Network("168.63.129.16/32"),
)


def all_public(addresses: Iterable[str]) -> bool:
    """Whether none of them is of this machine, a private network, a cloud's inside, multicast or reserved.

    Raises ValueError for what is no address.
    """
    return all(_is_public(ipaddress.ip_address(address.partition("%")[0])) for address in addresses)


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        hidden = any(address in network for network in _NOT_PUBLIC)
        return address.is_global and not address.is_multicast and not hidden
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return _is_public(inner)
    return address in _UNICAST and address.is_global
