"""Addresses of clients: who is behind a proxy, and what one address counts as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from posd.memo import memoize

Network = IPv4Network | IPv6Network

_MOST_HOPS: Final = 20
"""Proxies that are looked through, from the nearest on; a header has room for 1700 of them."""


def client_address(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """Tell the address of the client behind a connection, believing nobody but our proxies.

    `peer` is the address of the other end of the connection, `forwarded` the X-Forwarded-For
    headers as they came, in order. Each proxy adds the address it was called from at the end, and
    what a client writes there itself stands before. So the client is the last hop that is no proxy
    of ours. Where a proxy's word cannot be understood, that proxy is the client. The peer of a
    unix socket has no address, and counts as a proxy if there are any: who may connect there is a
    matter of the socket's mode.

    An IPv4 address that came in through IPv6 is told as IPv4.
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
    """Tell whether the other end of a connection is one of our proxies, which brings many clients' requests.

    As in `client_address`, the peer of a unix socket is one if there are any.
    """
    return _is_in(_parse(peer), proxies)


@memoize
def address_bucket(address: str) -> str:
    """Name what an address counts as: itself or its /64."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


@memoize
def _normalised(address: str) -> str:
    """An address in its usual form, and any other text as it is."""
    parsed = _parse(address)
    return address if parsed is None else str(parsed)


def _is_in(address: IPv4Address | IPv6Address | None, proxies: Sequence[Network]) -> bool:
    return bool(proxies) and (address is None or any(address in proxy for proxy in proxies))


@memoize
def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, with a port or in brackets too, as some proxies write it."""
    written = re.fullmatch(r"\[(.+)\](?::\d+)?|([\d.]+):\d+|(.+)", text.strip())
    if written is None:
        return None
    try:
        address = ip_address(next(filter(None, written.groups())))
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    # Without its zone, which only names the interface that this machine was reached through.
    return address.ipv4_mapped or IPv6Address(int(address))
