"""The address of a client, also behind a proxy, and the group of addresses that share one limit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from posd.memo import memoize

Network = IPv4Network | IPv6Network

_MOST_HOPS: Final = 20
"""The longest chain of proxies that is read, from the nearest on. A header has room for 1700 of them."""


def client_address(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """Return the address of the client behind a connection. Only configured proxies are trusted.

    `peer` is the address of the other end of the connection. `forwarded` has the X-Forwarded-For headers
    of the request, in order. A proxy appends the address of its own peer, after the addresses that the
    client has sent. So the client is the last hop that is not a configured proxy. If a proxy has appended
    text that is not an address, that proxy counts as the client.

    The peer of a unix socket has no address. It counts as a proxy if any proxy is configured, because the
    mode of the socket decides who may connect.

    An IPv4-mapped IPv6 address is returned as IPv4.
    """
    if not proxies:
        return _normalised(peer)
    address = _parse(peer)
    hops = [hop for header in forwarded for hop in header.split(",") if hop.strip()][-_MOST_HOPS:]
    while hops and _is_in(address, proxies):
        hop = _parse(hops.pop())
        if hop is None:
            break
        address = hop
    return peer if address is None else str(address)


def is_proxy(peer: str, proxies: Sequence[Network]) -> bool:
    """Return whether the peer is a configured proxy, whose connections carry requests of many clients.

    As in `client_address`, the peer of a unix socket counts as a proxy if any proxy is configured.
    """
    return _is_in(_parse(peer), proxies)


@memoize
def address_bucket(address: str) -> str:
    """Return the key under which an address is counted: an IPv4 address itself, or the /64 of IPv6."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


@memoize
def _normalised(address: str) -> str:
    """Return an address in its canonical form, and any other text unchanged."""
    parsed = _parse(address)
    return address if parsed is None else str(parsed)


def _is_in(address: IPv4Address | IPv6Address | None, proxies: Sequence[Network]) -> bool:
    return bool(proxies) and (address is None or any(address in proxy for proxy in proxies))


@memoize
def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address. Some proxies add a port or write brackets."""
    written = re.fullmatch(r"\[(.+)\](?::\d+)?|([\d.]+):\d+|(.+)", text.strip())
    if written is None:
        return None
    try:
        address = ip_address(next(filter(None, written.groups())))
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    # int() drops the zone, which only names an interface of this machine.
    return address.ipv4_mapped or IPv6Address(int(address))
