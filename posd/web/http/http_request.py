"""The request that is passed to an operation, and its listener."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Sequence
from copy import copy
from typing import BinaryIO, Final, cast

from attrs import define, field, frozen

from posd.errors import (
    BadRequest,
    Forbidden,
    InvalidMessage,
    NumberOutOfRange,
    UnsupportedMediaType,
)
from posd.memo import memoize
from posd.protocol import jsontext, surrogates
from posd.security.addresses import Network, client_address
from posd.security.request_rates import RateAccount
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.headers import as_text, members
from posd.web.http.long_answers import UnsentAnswers
from posd.web.http.stepwise import run_in_steps

_LONGEST_DEVICE: Final = 128
UNKNOWN_OPERATION: Final = "none"
"""The operation of a request whose URL has no operation."""
# Three more levels than a value may have: an event, in a list, in an object.
_MOST_DEPTH: Final = jsontext.DEPTH + 3
_LONGEST_AT_ONCE: Final = 32 * 1024
"""A body of more bytes is parsed in steps."""


Served = Callable[[str, int, float], None]
"""Called after each answer with the operation, the status and the seconds that it took."""


@frozen
class ListenerContext:
    """The properties of a listener that its requests depend on.

    A `trusted` listener is a unix socket or on loopback; there /broadcast, /health and /metrics require no
    key. X-Forwarded-For is accepted from `proxies`. `served` is called after every answer.
    """

    trusted: bool = False
    proxies: tuple[Network, ...] = ()
    served: Served = lambda operation, status, seconds: None
    unsent: UnsentAnswers | None = None
    """Sends long answers in parts. None: they are written at once."""


@define(eq=False)
class HTTPRequest:
    """The request that is passed to an operation."""

    request: BoundedRequest
    listener_context: ListenerContext
    operation: str = field(default=UNKNOWN_OPERATION, init=False)
    """The method and the path template, once they are known, such as `GET /api/{tenant}/events`.

    It names the operation in metrics and logs.
    """
    began: float = field(factory=time.monotonic, init=False)
    release_turn: Callable[[], None] = field(default=lambda: None, init=False)
    """Ends the turn of `posd.web.http.request_turns` before the answer. A second call does nothing."""
    body: bytes = field(init=False)
    """The body. It is read first, because Twisted closes the content when the client disconnects."""
    _id: str | None = field(default=None, init=False)
    _parsed: object = field(default=None, init=False)
    """The result of `parse`."""
    _is_repaired: bool | None = field(default=None, init=False)
    """The value of `repaired`; None if it is not known yet."""

    def __attrs_post_init__(self) -> None:
        content = cast(BinaryIO | None, self.request.content)
        self.body = b"" if content is None else content.read()
        if content is not None:
            # Free the copy in the content. `forget_body` frees the other one.
            content.seek(0)
            content.truncate()

    @property
    def id(self) -> str:
        """A random id that names the request in the log and in error responses."""
        if self._id is None:
            self._id = secrets.token_hex(8)
        return self._id

    @property
    def key(self) -> str | None:
        """The credential, from X-API-Key or else from Authorization; None if both are empty or missing.

        Raises `BadRequest` if one of the headers has two different values.
        """
        return _single_value(self.request.keys, "An API key")

    @property
    def address(self) -> str:
        """The client's IP address; empty on a unix socket."""
        return address_of(self.request, self.listener_context)

    @property
    def account(self) -> RateAccount | None:
        """The account of the credential that is charged; None if the request has no known key."""
        return self.request.account

    def check_rate(self) -> None:
        """Raise `TooManyRequests` if the credential or the address exceeded its rate with this request."""
        refusal = self.request.over_rate
        if refusal is not None:
            # Raise a copy: a traceback in the original would be a reference cycle with the request.
            raise copy(refusal)

    @property
    def device(self) -> str | None:
        """The value of X-Device-ID: the name of a terminal, up to 128 characters. Raises `BadRequest`."""
        raw = self.headers("x-device-id")
        if not raw:
            return None
        try:
            # This raises ValueError if there are two different names.
            (name,) = {as_text(value).strip() for value in raw}
        except ValueError:
            name = ""
        return device_name(name, "X-Device-ID")

    def header(self, name: str) -> str | None:
        """Return the value of a header that takes one value; None without the header.

        The same value may occur several times. Raises `BadRequest` for different values, because a proxy may
        have used another one than posd would.
        """
        found = self.headers(name)
        return _single_value(found, name.title()) if found else None

    def members(self, name: str) -> set[str]:
        """Return the members of a list header, from all its lines, in lower case."""
        return members(self.headers(name))

    def headers(self, name: str) -> list[str]:
        """Return the values of a header by its name in lower case. They have one character for each byte."""
        return self.request.fields.get(name, [])

    def parameter(self, name: str) -> str | None:
        """Return the first value of a query parameter, or None."""
        raw: bytes | None = self.request.args.get(name.encode(), [None])[0]
        return None if raw is None else raw.decode("latin-1")

    @property
    def parameters(self) -> dict[str, object]:
        """The first value of every query parameter. Raises `BadRequest` for a query that is not UTF-8."""
        read: dict[str, object] = {}
        for name, given in self.request.args.items():
            try:
                read[name.decode()] = given[0].decode()
            except UnicodeDecodeError as error:
                raise BadRequest("The query must be UTF-8.", code="invalid_query") from error
        return read

    @property
    def size(self) -> int:
        """The bytes of the body."""
        return len(self.body)

    @property
    def repaired(self) -> bool:
        """Whether the parser replaces characters of the JSON body."""
        if self._is_repaired is None:
            self._is_repaired = jsontext.needs_repair(self.body)
        return self._is_repaired

    @property
    def is_long(self) -> bool:
        """Whether the body is processed in steps, with turns of the reactor between them."""
        return self.size > _LONGEST_AT_ONCE

    async def parse(self) -> None:
        """Parse a long body in steps, so that `json` returns at once. Raises the errors of `json`.

        To parse a mebibyte of orders takes some twenty milliseconds, during which no till would be served.
        """
        if self.is_long:
            self._check_type()
            try:
                self._parsed = await run_in_steps(self._parse_in_pieces())
            except InvalidMessage as error:
                raise _bad_body(error) from error

    def _parse_in_pieces(self) -> Generator[None, None, object]:
        whole = yield from surrogates.repair_in_steps(self.body)
        self._is_repaired = whole != self.body or jsontext.has_nul(whole)
        return (yield from jsontext.decode_in_steps(whole, depth=_MOST_DEPTH))

    def json(self) -> dict[str, object]:
        """Return the body as a JSON object.

        Raises `UnsupportedMediaType` for another content type and for a compressed body, and `BadRequest`
        for a body that is not an object (`invalid_json`) or has a number with too many digits
        (`number_out_of_range`).
        """
        self._check_type()
        body = self._parsed
        if body is None:
            try:
                body = jsontext.decode(self.body, depth=_MOST_DEPTH)
            except InvalidMessage as error:
                raise _bad_body(error) from error
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.", code="invalid_json")
        return cast("dict[str, object]", body)

    def forget_body(self) -> None:
        """Free the body. The request itself is freed later, by the garbage collector."""
        self.body, self._parsed = b"", None

    def _check_type(self) -> None:
        if self.members("content-encoding") - {"identity"}:
            raise _CompressedBody(
                "The body must not be compressed: send it without Content-Encoding."
            )
        if not _is_json(self.header("content-type") or "application/json"):
            raise UnsupportedMediaType("The body must be application/json.")

    def check_tenant(self, slug: str) -> None:
        """Raise `Forbidden` if a line of X-Tenant-ID names another tenant than `slug`."""
        named = self.headers("x-tenant-id")
        # A proxy may have joined two lines by a comma (RFC 9110 §5.3). A slug has no comma.
        if any(each.strip() != slug for value in named for each in value.split(",")):
            raise Forbidden("X-Tenant-ID names another tenant.", code="tenant_mismatch")


def _bad_body(error: InvalidMessage) -> BadRequest:
    """Return the refusal of a body that cannot be parsed."""
    if isinstance(error, NumberOutOfRange):
        return BadRequest(str(error), code="number_out_of_range")
    return BadRequest(str(error), code="invalid_json")


class _CompressedBody(UnsupportedMediaType):
    """A body has a content coding. The header says that posd accepts none (RFC 9110 §12.5.3)."""

    headers = {"Accept-Encoding": "identity"}


def address_of(request: BoundedRequest, listener_context: ListenerContext) -> str:
    """Return the client's IP address; empty on a unix socket."""
    peer = getattr(request.client, "host", "")
    return client_address(peer, request.fields.get("x-forwarded-for", ()), listener_context.proxies)


@memoize
def _is_json(media: str) -> bool:
    """Return whether a content type is JSON (RFC 6839 §3.1)."""
    kind = media.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def device_name(given: str, where: str) -> str:
    """Return a terminal's name without surrounding blanks. Raises `BadRequest` (`invalid_device`)."""
    name = given.strip()
    if not 0 < len(name) <= _LONGEST_DEVICE or not name.isprintable():
        raise BadRequest(f"{where} must be 1 to 128 characters.", code="invalid_device")
    return name


def _single_value(found: Sequence[str], what: str) -> str | None:
    """Return the only value, or None if there is none. Raises `BadRequest` for different values."""
    if len(found) > 1 and len({*found}) > 1:
        raise BadRequest(f"{what} is sent twice, with different values.")
    return found[0] if found else None
