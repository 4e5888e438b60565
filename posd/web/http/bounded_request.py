"""An HTTP request that is checked and charged when its head has arrived, before its body is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final, Protocol

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure
from twisted.web.http import parse_qs
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from posd.errors import TooManyRequests
from posd.security.request_rates import RateAccount
from posd.web.http.headers import (
    Fields,
    RequestTarget,
    date,
    headers_of,
    is_host,
    keys_in,
    path_parts,
    read_fields,
    read_target,
)

BODY_BYTES: Final = 1024 * 1024
"""The longest body of any request."""
_MOST_PARAMETERS: Final = 100
MOST_UNFINISHED_BYTES: Final = 64 * 1024 * 1024
"""Bytes of incomplete bodies of more than 64 KiB on one listener."""
_SHORT_BODY_BYTES: Final = 64 * 1024
_DISCARDED_BODY_BYTES: Final = 64 * 1024
"""If a request exceeds its rate, a body up to this size is read and discarded before the answer 429.

If the body is longer and the request has no valid key, posd answers 429 at once and closes the connection. If
the key is valid, posd reads the body after a pause, because a new connection would cost more.
"""


class RequestCharges(Protocol):
    """Charges requests (`posd.web.http.rate_gate`)."""

    def account(self, request: BoundedRequest, path: bytes) -> RateAccount | None:
        """Return the account of the request's key, or None if the request has no known key."""

    def charge(
        self, request: BoundedRequest, account: RateAccount | None, path: bytes, size: int
    ) -> None:
        """Charge a request to its account, or else to its address. Raises `TooManyRequests`."""

    def charge_more(self, account: RateAccount | None, size: int) -> TooManyRequests | None:
        """Charge bytes of a body without Content-Length. Return the refusal if the rate is exceeded."""

    def is_proxy(self, peer: str) -> bool:
        """Return whether the other end of a connection is one of the listener's `proxies`."""


class RequestSite(Protocol):
    """The interface of `posd.web.http.site.BoundedSite` that a request uses."""

    rate_gate: RequestCharges | None
    bodies: LargeBodies
    body_bytes: Callable[[bytes, bytes], int]
    """Returns the most bytes of a body, from the method and the path of the request."""


class RequestChannel(Protocol):
    """The interface of `posd.web.http.channel.BoundedChannel` that a request uses."""

    persistent: int
    """Whether another request may follow."""

    transport: Any

    def getPeer(self) -> IAddress:
        """Return the client's address."""

    def getHost(self) -> IAddress:
        """Return the local address."""

    def send(self, data: bytes) -> None:
        """Send to the client, in this turn of the reactor if nothing else waits to be sent."""

    @property
    def site(self) -> Any:
        """The site: a `RequestSite` that also has the root resource."""

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """The method, target and version of the last head."""

    def pause_reading(self, request: BoundedRequest) -> None:
        """Pause reading from the connection, because this request exceeds a rate."""

    def set_owner(self, owner: object) -> None:
        """Note that a request has a valid key of `owner`."""

    def refuse(
        self, status: bytes, code: str, message: str, headers: Mapping[str, str] = {}
    ) -> None:
        """Send a refusal and close the connection."""


class BoundedRequest(Request):
    """A request that is refused as soon as its body is too large, with Content-Length or without.

    `over_rate` is the refusal of a request that exceeds the rate of its credential or its address. It is sent
    when the whole request has arrived. `refused` is true after a refusal was sent earlier.
    """

    channel: RequestChannel  # type: ignore[assignment]
    queued = False
    cookies = received_cookies = ()  # type: ignore[assignment]
    """posd uses no cookies."""
    _received_bytes = 0
    _most_bytes = BODY_BYTES
    _target: RequestTarget
    refused = False
    over_rate: TooManyRequests | None = None
    account: RateAccount | None = None
    """The account of the credential that is charged; None if the request has no known key."""
    _has_length = True
    """Whether Content-Length gave the size of the body. If so, the body was charged with the head."""
    _fields: Fields | None = None
    _keys: list[str] | None = None
    _headers: Headers | None = None
    _answer_headers: Headers | None = None
    is_disconnected = False
    """Whether the connection is lost, so that no answer can be sent."""

    def __init__(self, channel: RequestChannel, queued: object = None) -> None:
        """Set the attributes of Twisted's own `__init__` that posd uses. Headers are created on first use.

        `tests.web.http.test_site` compares this method with Twisted's.
        """
        self.channel = channel
        self.client, self.host = channel.getPeer(), channel.getHost()
        self.transport = channel.transport
        self.notifications: list[Deferred[None]] = []
        self._adapterCache: dict[str, object] = {}

    @property
    def fields(self) -> Fields:
        """The fields of its head. They must not be asked for before the head was read."""
        if self._fields is None:
            self._fields = read_fields(self.requestHeaders)
        return self._fields

    @fields.setter
    def fields(self, fields: Fields) -> None:
        self._fields = fields

    @property
    def requestHeaders(self) -> Headers:
        """The same in Twisted's form, which Twisted and Autobahn need."""
        if self._headers is None:
            self._headers = headers_of(self._fields or {})
        return self._headers

    @requestHeaders.setter
    def requestHeaders(self, headers: Headers) -> None:
        self._headers = headers

    @property
    def responseHeaders(self) -> Headers:
        """What Twisted writes before an answer that is written in parts, an event stream for example."""
        if self._answer_headers is None:
            self._answer_headers = Headers()
        return self._answer_headers

    @responseHeaders.setter
    def responseHeaders(self, headers: Headers) -> None:
        self._answer_headers = headers

    def gotLength(self, length: int | None) -> None:
        """Judge the request by its head, which has come, and charge it. `length` is its body's, if known."""
        command, target, version = self.channel.request_line
        request_target = read_target(command, target)
        fault = _head_fault(self.fields, version, length)
        if request_target is None:
            fault = "The request target is not valid."
        else:
            self._target = request_target
        if fault is not None:
            self.refuse(b"400 Bad Request", "bad_request", fault)
        else:
            self._most_bytes = self.channel.site.body_bytes(command, self._target.origin)
            if length is not None and length > self._most_bytes:
                self._refuse_body()
            else:
                self._charge(length)
        # Twisted would write a long body, or one of unknown length, to a temporary file.
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > self._most_bytes:
            self._refuse_body()
        elif not self._has_length and self.over_rate is None:
            self._charge_more(len(data))
        if not self.refused and self.over_rate is None:
            Request.handleContentChunk(self, data)
            if self._received_bytes > _SHORT_BODY_BYTES:
                self.channel.site.bodies.update(self, self._received_bytes)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.channel.site.bodies.remove(self)
        target = self._target
        if target.origin.count(b"&") >= _MOST_PARAMETERS:
            # A line can have 8000 parameters. Parsing them takes 5 ms, and happens before a key is checked.
            message = f"A query may have {_MOST_PARAMETERS} parameters."
            self.refuse(b"400 Bad Request", "bad_request", message)
        if self.refused:
            return
        if target.authority is not None:
            # The authority of an absolute target replaces Host (RFC 9112 §3.2.2).
            self.requestHeaders.setRawHeaders(b"Host", [target.authority])
            self.fields["host"] = [target.authority.decode("ascii")]
        self.method, self.uri, self.clientproto = command, target.origin, version
        path, _, query = target.origin.partition(b"?")
        # `*` names no resource (RFC 9110 §9.3.7).
        self.path = b"/" if path == b"*" else path
        self.args = parse_qs(query, True) if query else {}
        assert self.content is not None
        self.content.seek(0)
        self.process()

    @property
    def keys(self) -> list[str]:
        """The credentials in the request's headers. They are parsed once."""
        if self._keys is None:
            self._keys = keys_in(self.fields)
        return self._keys

    def process(self) -> None:
        """Render the resource of the request. Twisted's own method also sets headers that posd replaces."""
        self.site = site = self.channel.site
        self.prepath, self.postpath = [], [*path_parts(self.path)]
        try:
            resource = site.resource if site.resource.isLeaf else site.getResourceFor(self)
            Request.render(self, resource)
        except Exception:
            Request.processingFailed(self, Failure())

    def write(self, data: bytes) -> None:
        """Write a part of an answer. The first part begins with the head."""
        if not self.startedWriting:
            self.responseHeaders.setRawHeaders(b"Date", [date()])
        Request.write(self, data)

    def answer(self, status: bytes, fields: bytes, body: bytes = b"") -> None:
        """Send a complete answer with one write, and finish the request."""
        self.begin(status, fields, body)
        Request.finish(self)

    def begin(self, status: bytes, fields: bytes, body: bytes = b"") -> None:
        """Send the head of an answer, and its body or a part of it, with one write.

        `status` has the form `200 OK`. `fields` has the header lines, with Content-Length.
        """
        last = b"" if self.channel.persistent else b"Connection: close\r\n"
        line = self.clientproto, status
        self.startedWriting = 1
        self.channel.send(b"%b %b\r\n%bDate: %b\r\n%b\r\n%b" % (*line, fields, date(), last, body))

    def connectionLost(self, reason: Failure) -> None:
        """Keep the body, because a complete request is carried out even if its client has disconnected.

        Twisted's own method would close the body. Here it is freed with the request.
        """
        self.is_disconnected = True
        content, self.content = self.content, None
        self.channel.site.bodies.remove(self)
        Request.connectionLost(self, reason)
        self.content = content

    def evict(self) -> None:
        """Refuse the request, because there is no memory for its incomplete body."""
        message = "posd is receiving too many long bodies. Try again."
        self.refuse(b"503 Service Unavailable", "overloaded", message, {"Retry-After": "1"})

    def _charge(self, length: int | None) -> None:
        """Charge the request, and its body if Content-Length gives the size."""
        rate_gate = self.channel.site.rate_gate
        if rate_gate is None:
            return
        self._has_length = length is not None
        path = self._target.origin
        self.account = rate_gate.account(self, path)
        if self.account is not None:
            self.channel.set_owner(self.account.owner)
        try:
            rate_gate.charge(self, self.account, path, length or 0)
        except TooManyRequests as refusal:
            self._refuse_over_rate(refusal, length)

    def _charge_more(self, size: int) -> None:
        """Charge a part of a body without Content-Length."""
        rate_gate = self.channel.site.rate_gate
        refusal = None if rate_gate is None else rate_gate.charge_more(self.account, size)
        if refusal is not None:
            self._refuse_over_rate(refusal, None)

    def _refuse_over_rate(self, refusal: TooManyRequests, length: int | None) -> None:
        """Refuse the request for its rate: after its body, or now, and then close the connection.

        `_DISCARDED_BODY_BYTES` describes which. A client that expects `100 Continue` has not sent the body,
        so it is refused now.
        """
        # The traceback would refer to this request: a reference cycle.
        self.over_rate = refusal.with_traceback(None)
        if length is not None and length <= _DISCARDED_BODY_BYTES:
            return
        if self.account is not None and "expect" not in self.fields:
            self.channel.pause_reading(self)
        else:
            message, headers = refusal.message, {"Retry-After": str(refusal.retry_after)}
            self.refuse(b"429 Too Many Requests", refusal.code, message, headers)

    def _refuse_body(self) -> None:
        """Refuse the request and close the connection, instead of reading a body that is too long."""
        message = f"The body has more than {self._most_bytes} bytes."
        self.refuse(b"413 Content Too Large", "too_large", message)

    def refuse(
        self, status: bytes, code: str, message: str, headers: Mapping[str, str] = {}
    ) -> None:
        """Send a refusal, close the connection, and do not process the request."""
        if not self.refused and self.channel is not None:
            self.refused = True
            self.content = BytesIO()
            self.channel.site.bodies.remove(self)
            self.channel.refuse(status, code, message, headers)


@define(eq=False)
class LargeBodies:
    """Bounds the memory for incomplete bodies of more than 64 KiB.

    Clients without a key can send such bodies too. If their total size exceeds `MOST_UNFINISHED_BYTES`, the
    oldest request is refused: a platform sends its body within moments, so the oldest is most likely an
    attack.
    """

    _sizes: dict[BoundedRequest, int] = field(factory=dict, init=False)
    total: int = field(default=0, init=False)
    """The size of all incomplete bodies, in bytes."""

    def update(self, request: BoundedRequest, size: int) -> None:
        """Set the size of a request's incomplete body, in bytes."""
        self.total += size - self._sizes.get(request, 0)
        self._sizes[request] = size
        while self.total > MOST_UNFINISHED_BYTES:
            next(iter(self._sizes)).evict()

    def remove(self, request: BoundedRequest) -> None:
        """Forget a request whose body is complete, refused or lost."""
        self.total -= self._sizes.pop(request, 0)


def _head_fault(fields: Fields, version: bytes, length: int | None) -> str | None:
    """Return the error in a head, or None. `length` is the value of Content-Length, or None."""
    hosts = fields.get("host", [])
    coded = "transfer-encoding" in fields
    if coded and length is not None:
        # Only "chunked" marks the end of the body (RFC 9112 §6.1), and it excludes Content-Length.
        return "Transfer-Encoding must be chunked."
    if coded and version != b"HTTP/1.1":
        return "HTTP/1.0 has no Transfer-Encoding."
    if not hosts and version == b"HTTP/1.1":
        # RFC 9112 §3.2.
        return "The Host header is missing."
    if len(hosts) > 1:
        # A proxy may have used the other one.
        return "There is more than one Host header."
    if hosts and not is_host(hosts[0]):
        return "The Host header is not valid."
    return None
