"""A request as endpoints see it, and the listener that it came in by."""

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
"""The operation of a request that asks for none that there is."""
# What is published may be nested as deeply as anywhere, and an event wraps it.
_MOST_DEPTH: Final = jsontext.DEPTH + 3
_LONGEST_AT_ONCE: Final = 32 * 1024
"""A longer body is read in pieces."""


Served = Callable[[str, int, float], None]
"""Told of an answer: to which operation, its status, and how many seconds it took."""


@frozen
class ListenerContext:
    """The listener that a request came in by.

    A `trusted` one is a unix socket or loopback, where /broadcast, /health and /metrics need no
    key. `proxies` may speak for a client by X-Forwarded-For. `served` is told of every answer.
    """

    trusted: bool = False
    proxies: tuple[Network, ...] = ()
    served: Served = lambda operation, status, seconds: None
    unsent: UnsentAnswers | None = None
    """Where long answers are written as clients take them; None writes them at once."""


@define(eq=False)
class HTTPRequest:
    """A request, as endpoints see it."""

    request: BoundedRequest
    listener_context: ListenerContext
    operation: str = field(default=UNKNOWN_OPERATION, init=False)
    """Method and template of the address, once that is known: what it is called in metrics and logs."""
    began: float = field(factory=time.monotonic, init=False)
    release_turn: Callable[[], None] = field(default=lambda: None, init=False)
    """Ends the request's turn before it is answered (`posd.web.http.request_turns`). A second call does
    nothing.
    """
    body: bytes = field(init=False)
    """Read at once: Twisted closes a request's content when the client goes away, who may do so while
    its key is still being looked up."""
    _id: str | None = field(default=None, init=False)
    _parsed: object = field(default=None, init=False)
    """What `parse` has read."""
    _is_repaired: bool | None = field(default=None, init=False)
    """Whether characters were replaced; None: nobody has looked yet."""

    def __attrs_post_init__(self) -> None:
        content = cast(BinaryIO | None, self.request.content)
        self.body = b"" if content is None else content.read()
        if content is not None:
            # There is one copy of it now, which `forget_body` frees.
            content.seek(0)
            content.truncate()

    @property
    def id(self) -> str:
        """What names the request in the log, and in the answer to a refusal."""
        if self._id is None:
            self._id = secrets.token_hex(8)
        return self._id

    @property
    def key(self) -> str | None:
        """The credential, from X-API-Key or else Authorization; an empty one is none.

        Raises `BadRequest` for two that differ in one of the headers.
        """
        return _single_value(self.request.keys, "An API key")

    @property
    def address(self) -> str:
        """Where the client is, by IP; empty on a unix socket."""
        return address_of(self.request, self.listener_context)

    @property
    def account(self) -> RateAccount | None:
        """The credential that is charged for this, None where an address or nobody is."""
        return self.request.account

    def check_rate(self) -> None:
        """Raise `TooManyRequests` if the credential or the address was over its rate when this came."""
        refusal = self.request.over_rate
        if refusal is not None:
            # The request has the refusal. If that had a traceback, they would be a cycle.
            raise copy(refusal)

    @property
    def device(self) -> str | None:
        """The terminal that the caller names, free UTF-8 up to 128 characters."""
        raw = self.headers("x-device-id")
        if not raw:
            return None
        try:
            # Two names that differ are as bad as none.
            (name,) = {as_text(value).strip() for value in raw}
        except ValueError:
            name = ""
        return device_name(name, "X-Device-ID")

    def header(self, name: str) -> str | None:
        """The value of a header that takes one value. The same value on several lines is one value.

        Raises `BadRequest` for values that differ: a proxy may have used another one than posd would.
        """
        found = self.headers(name)
        return _single_value(found, name.title()) if found else None

    def members(self, name: str) -> set[str]:
        """The members of a header whose value is a list, from all of its lines, in lower case."""
        return members(self.headers(name))

    def headers(self, name: str) -> list[str]:
        """A header's values, by its name in lower case; a character for each byte."""
        return self.request.fields.get(name, [])

    def parameter(self, name: str) -> str | None:
        """A query parameter's value, the first where there are several."""
        raw: bytes | None = self.request.args.get(name.encode(), [None])[0]
        return None if raw is None else raw.decode("latin-1")

    @property
    def parameters(self) -> dict[str, object]:
        """All query parameters that are UTF-8, the first value of each."""
        read: dict[str, object] = {}
        for name, given in self.request.args.items():
            try:
                read[name.decode()] = given[0].decode()
            except UnicodeDecodeError as error:
                raise BadRequest("The query must be UTF-8.", code="invalid_query") from error
        return read

    @property
    def size(self) -> int:
        """How many bytes the body has."""
        return len(self.body)

    @property
    def repaired(self) -> bool:
        """Whether characters of the JSON body were replaced when it was read."""
        if self._is_repaired is None:
            self._is_repaired = jsontext.needs_repair(self.body)
        return self._is_repaired

    @property
    def is_long(self) -> bool:
        """Whether what is done with the body is done in pieces."""
        return self.size > _LONGEST_AT_ONCE

    async def parse(self) -> None:
        """Read a long body in pieces, so that `json` has it at once. Raises what `json` does.

        A mebibyte of orders takes some twenty milliseconds, in which no till would be served.
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
        """The body as a JSON object.

        Raises `UnsupportedMediaType` for another content type and for a compressed body, and `BadRequest`
        for what is no object (`invalid_json`) or has a number of too many digits (`number_out_of_range`).
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
        """Free it. A call and its request are freed later, by the garbage collector."""
        self.body, self._parsed = b"", None

    def _check_type(self) -> None:
        if self.members("content-encoding") - {"identity"}:
            raise _CompressedBody(
                "The body must not be compressed: send it without Content-Encoding."
            )
        if not _is_json(self.header("content-type") or "application/json"):
            raise UnsupportedMediaType("The body must be application/json.")

    def check_tenant(self, slug: str) -> None:
        """Raise `Forbidden` if X-Tenant-ID names another tenant than the URL does, on any line."""
        named = self.headers("x-tenant-id")
        # A proxy may have joined two lines by a comma (RFC 9110 §5.3), which no slug has.
        if any(each.strip() != slug for value in named for each in value.split(",")):
            raise Forbidden("X-Tenant-ID names another tenant.", code="tenant_mismatch")


def _bad_body(error: InvalidMessage) -> BadRequest:
    """What is answered to a body that cannot be read."""
    if isinstance(error, NumberOutOfRange):
        return BadRequest(str(error), code="number_out_of_range")
    return BadRequest(str(error), code="invalid_json")


class _CompressedBody(UnsupportedMediaType):
    """A body with a content coding. The header says that none is accepted (RFC 9110 §12.5.3)."""

    headers = {"Accept-Encoding": "identity"}


def address_of(request: BoundedRequest, listener_context: ListenerContext) -> str:
    """Where the client is, by IP; empty on a unix socket."""
    peer = getattr(request.client, "host", "")
    return client_address(peer, request.fields.get("x-forwarded-for", ()), listener_context.proxies)


@memoize
def _is_json(media: str) -> bool:
    """Whether a content type is JSON (RFC 6839 §3.1)."""
    kind = media.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def device_name(given: str, where: str) -> str:
    """A terminal's name without blanks around it. Raises `BadRequest` for what is none."""
    name = given.strip()
    if not 0 < len(name) <= _LONGEST_DEVICE or not name.isprintable():
        raise BadRequest(f"{where} must be 1 to 128 characters.", code="invalid_device")
    return name


def _single_value(found: Sequence[str], what: str) -> str | None:
    """The one value there is, None where there is none. Raises `BadRequest` for values that differ."""
    if len(found) > 1 and len({*found}) > 1:
        raise BadRequest(f"{what} is sent twice, with different values.")
    return found[0] if found else None
