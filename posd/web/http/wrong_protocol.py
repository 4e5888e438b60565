"""Recognises, answers and logs connections whose client speaks another protocol than the listener.

The cause is a wrong configuration, such as a proxy with `send-proxy`, or a till with `http://` on a TLS port.
Without this module both ends would only report that the connection was closed.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from attrs import define, field
from twisted.internet.interfaces import ITransport
from twisted.logger import Logger

from posd.security.rate_limits import Clock, RefusalLogLimit

_log = Logger()


class KnownProtocol(enum.Enum):
    """A protocol that its first bytes identify."""

    HTTP = "HTTP without TLS"
    TLS = "TLS"
    PROXY = "the PROXY protocol"


LONGEST_OPENING: Final = 12
"""The number of bytes that identify any of the protocols."""
# RFC 8446 §5.1: a record of a handshake, from TLS 1.0 to 1.3.
_TLS: Final = b"\x16\x03"
# https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, §2.1 and §2.2.
_PROXY: Final = (b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n")
_HTTP: Final = re.compile(rb"[A-Z]{3,7} [/h*]")

HINTS: Final = {
    KnownProtocol.HTTP: "This port speaks TLS. Use https:// or wss://.",
    KnownProtocol.TLS: "This port does not speak TLS. Use http:// or ws://.",
    KnownProtocol.PROXY: "posd does not speak the PROXY protocol. Have the proxy send X-Forwarded-For.",
}
"""The messages to clients."""

# The remedies in the log, for operators.
_REMEDIES: Final = {
    KnownProtocol.HTTP: "use https:// or wss:// there, or a listener without tls",
    KnownProtocol.TLS: "use http:// or ws:// there, or set tls = true for this listener",
    KnownProtocol.PROXY: "switch it off in the proxy, and let it send X-Forwarded-For (see `proxies`)",
}


def detect_protocol(opening: bytes) -> KnownProtocol | None:
    """Return the protocol of a connection that begins with these bytes; None if it is not known (yet)."""
    if opening.startswith(_TLS):
        return KnownProtocol.TLS
    if opening.startswith(_PROXY):
        return KnownProtocol.PROXY
    return KnownProtocol.HTTP if _HTTP.match(opening) else None


@define(eq=False)
class WrongProtocols:
    """Logs connections with a wrong protocol, with a limited rate of lines."""

    clock: Clock
    _limit: RefusalLogLimit = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limit = RefusalLogLimit(self.clock)

    def log_connection(self, spoken: KnownProtocol, transport: ITransport) -> None:
        """Log a connection that posd closes because its client speaks another protocol than the listener."""
        address = str(getattr(transport.getPeer(), "host", "-"))
        unsaid = self._limit.take(address)
        if unsaid is None:
            return
        _log.info(
            "a client speaks {spoken} on port {port}, which does not speak it; the connection is closed:"
            " address={address} remedy={remedy!r} unsaid={unsaid}",
            spoken=spoken.value,
            port=getattr(transport.getHost(), "port", "-"),
            address=address,
            remedy=_REMEDIES[spoken],
            unsaid=unsaid,
        )
