"""A request whose head is judged before anything of its body is kept."""

from __future__ import annotations

from typing import Final, Protocol

from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from posd.web.http.headers import Target, is_host, read_target

BODY_BYTES: Final = 1024 * 1024
"""The longest body of any request."""


class Channel(Protocol):
    """What a request needs of its connection, a `posd.web.http.site.BoundedChannel`."""

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, target and version of the request whose head was read last."""

    def body_bytes(self, method: bytes, path: bytes) -> int:
        """How long the body of such a request may be."""

    def refuse(self, status: bytes, code: str, sentence: str) -> None:
        """Answer what cannot become a request, and hang up."""


class BoundedRequest(Request):
    """A request whose body is refused as soon as it is too large, with Content-Length or without."""

    channel: Channel  # type: ignore[assignment]
    _received = 0
    _most = BODY_BYTES
    _target: Target
    refused = False

    def gotLength(self, length: int | None) -> None:
        command, target, version = self.channel.request_line
        read = read_target(command, target)
        fault = _fault(self.requestHeaders, version, length)
        if read is None:
            fault = "The request target is not valid."
        else:
            self._target = read
        if fault is not None:
            self.refuse(b"400 Bad Request", "bad_request", fault)
        else:
            self._most = self.channel.body_bytes(command, self._target.origin)
            if length is not None and length > self._most:
                self._refuse_body()
        # For 100,000 bytes or an unknown length Twisted would put the body into a temporary file.
        Request.gotLength(self, 0)

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > self._most:
            self._refuse_body()
        elif not self.refused:
            Request.handleContentChunk(self, data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        target = self._target
        if target.authority is not None:
            # RFC 9112 §3.2.2: the authority of an absolute target replaces Host.
            self.requestHeaders.setRawHeaders(b"Host", [target.authority])
        # Twisted answers `*` by itself, and with its own name in Server.
        path = b"/" if target.origin == b"*" else target.origin
        Request.requestReceived(self, command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        """What has come whole is carried out, whoever left meanwhile, and needs its body for that.

        Twisted closes that. Here it is closed when the request is forgotten.
        """
        content, self.content = self.content, None
        Request.connectionLost(self, reason)
        self.content = content

    def _refuse_body(self) -> None:
        """Answer and hang up, instead of reading on what is thrown away."""
        sentence = f"The body has more than {self._most} bytes."
        self.refuse(b"413 Content Too Large", "too_large", sentence)

    def refuse(self, status: bytes, code: str, sentence: str) -> None:
        """Answer, hang up, and do not process the request."""
        if not self.refused and self.channel is not None:
            self.refused = True
            self.channel.refuse(status, code, sentence)


def _fault(headers: Headers, version: bytes, length: int | None) -> str | None:
    """What is wrong with the head of a request; None for a good one. `length` is its body's, if known."""
    hosts = headers.getRawHeaders(b"Host", ())
    coded = headers.hasHeader(b"Transfer-Encoding")
    if coded and length is not None:
        # RFC 9112 §6.1: only "chunked" says where the body ends, and that has no length.
        return "Transfer-Encoding must be chunked."
    if coded and version != b"HTTP/1.1":
        return "HTTP/1.0 has no Transfer-Encoding."
    if not hosts and version == b"HTTP/1.1":
        # RFC 9112 §3.2.
        return "The Host header is missing."
    if len(hosts) > 1:
        # A proxy may have judged by the other one.
        return "There is more than one Host header."
    if hosts and not is_host(hosts[0].decode("latin-1")):
        return "The Host header is not valid."
    return None
