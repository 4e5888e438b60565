"""Asynchronous endpoints: one way to answer, one way to fail, for every one of them.

An endpoint is a coroutine from a `Call` to an `Answer`; a `Refusal` that it raises is an answer
too. Anything else is a bug: logged with its request id, answered with 500 and nothing of its text. A
client that goes away stops nothing: what was begun is finished, for a statement that runs in
PostgreSQL must not be cancelled from here, and only the answer is dropped.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, Final, cast

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES
from twisted.web.server import Request

from posd import __version__
from posd.errors import (
    BadRequest,
    Forbidden,
    InvalidMessage,
    NumberOutOfRange,
    Refusal,
    UnsupportedMediaType,
)
from posd.protocol import jsontext
from posd.security.addresses import Network, client_address
from posd.web.http.pieces import in_pieces
from posd.web.http.unsent import LONG, UnsentAnswers

# Those that twisted.web does not know.
_PHRASES: Final = {
    422: b"Unprocessable Content",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
}
_LOCAL_HOST: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
_LONGEST_DEVICE: Final = 128
UNKNOWN: Final = "none"
"""The operation of a request that asks for none that there is."""
# What is published may be nested as deeply as anywhere, and an event wraps it.
_DEPTH: Final = jsontext.DEPTH + 3
_AT_ONCE: Final = 32 * 1024
"""A longer body is read in pieces."""

_log = Logger()


Served = Callable[[str, int, float], None]
"""Told of an answer: to which operation, its status, and how many seconds it took."""


@frozen
class Door:
    """The listener that a request came in by.

    A `trusted` one is a unix socket or loopback, where /broadcast, /health and /metrics need no
    key. `proxies` may speak for a client by X-Forwarded-For. `served` is told of every answer.
    """

    trusted: bool = False
    proxies: tuple[Network, ...] = ()
    served: Served = lambda operation, status, seconds: None
    unsent: UnsentAnswers | None = None
    """Where long answers are written as clients take them; None writes them at once."""


@frozen
class Answer:
    """What goes out: a status, a JSON object and headers."""

    body: Mapping[str, object]
    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)

    @property
    def media(self) -> str:
        """Its content type."""
        return "application/json"

    def encoded(self) -> bytes:
        """Its body as it is sent."""
        return jsontext.encode(self.body)


@frozen
class Document(Answer):
    """A text that was made before, in the place of an object."""

    text: bytes = b""
    of: str = "application/json"

    @property
    def media(self) -> str:
        return self.of

    def encoded(self) -> bytes:
        return self.text


@frozen
class Takeover(Answer):
    """An answer that goes on for long: `begin` has the request from then on.

    `forgo` is called instead if whoever asked has gone meanwhile.
    """

    begin: Callable[[Request], None] = field(kw_only=True)
    forgo: Callable[[], None] = field(kw_only=True)


@define(eq=False)
class Call:
    """A request, as endpoints see it."""

    request: Request
    door: Door
    id: str = field(factory=lambda: secrets.token_hex(8))
    operation: str = field(default=UNKNOWN, init=False)
    """Method and template of the address, once that is known: what it is called in metrics and logs."""
    began: float = field(factory=time.monotonic, init=False)
    body: bytes = field(init=False)
    """Read at once: Twisted closes a request's content when the client goes away, who may do so while
    its key is still being looked up."""
    _parsed: object = field(default=None, init=False)
    """What `parse` has read."""

    def __attrs_post_init__(self) -> None:
        content = cast(BinaryIO | None, self.request.content)
        self.body = b"" if content is None else content.read()
        if content is not None:
            # There is one copy of it now, which `forget_body` frees.
            content.seek(0)
            content.truncate()

    @property
    def key(self) -> str | None:
        """The credential, from either header that tills send; an empty one is none."""
        key = (self.header("x-api-key") or "").strip()
        if key:
            return key
        scheme, _, token = (self.header("authorization") or "").partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    @property
    def address(self) -> str:
        """Where the client is, by IP; empty on a unix socket."""
        peer = getattr(self.request.getClientAddress(), "host", "")
        return client_address(peer, self.headers("x-forwarded-for"), self.door.proxies)

    @property
    def device(self) -> str | None:
        """The terminal that the caller names, free UTF-8 up to 128 characters."""
        raw = self.request.requestHeaders.getRawHeaders(b"x-device-id")
        if not raw:
            return None
        try:
            name = raw[0].decode()
        except UnicodeDecodeError:
            name = ""
        return device_name(name, "X-Device-ID")

    def header(self, name: str) -> str | None:
        """A header's value, the first where there are several."""
        return next(iter(self.headers(name)), None)

    def headers(self, name: str) -> list[str]:
        """A header's values, a character for each byte: not everybody sends UTF-8."""
        raw = self.request.requestHeaders.getRawHeaders(name.encode(), [])
        return [value.decode("latin-1") for value in raw]

    def parameter(self, name: str) -> str | None:
        """A query parameter's value, the first where there are several."""
        raw: bytes | None = self.request.args.get(name.encode(), [None])[0]
        return None if raw is None else raw.decode("latin-1")

    @property
    def parameters(self) -> dict[str, object]:
        """All query parameters that are UTF-8, the first value of each."""
        read: dict[str, object] = {}
        for name, values in self.request.args.items():
            try:
                read[name.decode()] = values[0].decode()
            except UnicodeDecodeError as error:
                raise BadRequest("The query must be UTF-8.", code="invalid_query") from error
        return read

    @property
    def size(self) -> int:
        """How many bytes the body has."""
        return len(self.body)

    @property
    def is_long(self) -> bool:
        """Whether what is done with the body is done in pieces."""
        return self.size > _AT_ONCE

    async def parse(self) -> None:
        """Read a long body in pieces, so that `json` has it at once. Raises what `json` does.

        A mebibyte of orders takes some twenty milliseconds, in which no till would be served.
        """
        if self.is_long:
            self._check_type()
            with _as_refusal():
                self._parsed = await in_pieces(jsontext.decode_in_pieces(self.body, depth=_DEPTH))

    def json(self) -> dict[str, object]:
        """The body as a JSON object.

        Raises `UnsupportedMediaType` for another content type and `BadRequest` for what is no
        object (`invalid_json`) or has a number of too many digits (`number_out_of_range`).
        """
        self._check_type()
        body = self._parsed
        if body is None:
            with _as_refusal():
                body = jsontext.decode(self.body, depth=_DEPTH)
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.", code="invalid_json")
        return cast("dict[str, object]", body)

    def forget_body(self) -> None:
        """Free it. A call and its request are freed later, by the garbage collector."""
        self.body, self._parsed = b"", None

    def _check_type(self) -> None:
        kind = (self.header("content-type") or "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMediaType("The body must be application/json.")

    def check_tenant(self, slug: str) -> None:
        """Raise `Forbidden` if X-Tenant-ID names another tenant than the URL does."""
        named = self.header("x-tenant-id")
        if named is not None and named != slug:
            raise Forbidden("X-Tenant-ID names another tenant.", code="tenant_mismatch")


Handler = Callable[[Call], Awaitable[Answer]]


@contextmanager
def _as_refusal() -> Iterator[None]:
    try:
        yield
    except NumberOutOfRange as error:
        raise BadRequest(str(error), code="number_out_of_range") from error
    except InvalidMessage as error:
        raise BadRequest(str(error), code="invalid_json") from error


def device_name(given: str, where: str) -> str:
    """A terminal's name without blanks around it. Raises `BadRequest` for what is none."""
    name = given.strip()
    if not 0 < len(name) <= _LONGEST_DEVICE or not name.isprintable():
        raise BadRequest(f"{where} must be 1 to 128 characters.", code="invalid_device")
    return name


def respond(call: Call, handler: Handler) -> None:
    """Run a handler and send its answer, if anybody is still there to have it."""
    gone = False

    def left(_: Failure) -> None:
        nonlocal gone
        gone = True

    call.request.notifyFinish().addErrback(left)

    def send(outcome: Answer) -> None:
        if isinstance(outcome, Takeover):
            outcome.forgo() if gone else outcome.begin(call.request)
        elif not gone:
            write(call, outcome)

    answered = Deferred.fromCoroutine(answer(call, handler))
    answered.addCallback(send)
    answered.addErrback(unanswered, call)


async def answer(call: Call, handler: Handler) -> Answer:
    """A handler's answer, or the one that its failure is."""
    outcome = await _outcome(call, handler)
    call.forget_body()
    call.door.served(call.operation, outcome.status, time.monotonic() - call.began)
    return outcome


async def _outcome(call: Call, handler: Handler) -> Answer:
    try:
        if call.door.trusted:
            _check_local(call)
        return await handler(call)
    except Refusal as refusal:
        return refused(refusal, call)
    except Exception:
        _log.failure("request {id} failed", id=call.id)
        return Answer(error_body("posd failed at this.", "internal_error", call), 500)


def unanswered(failure: Failure, call: Call) -> None:
    """There is a bug in how an answer is sent; whoever waits for it learns that there is none."""
    _log.failure("no answer to {id}", failure, id=call.id)
    call.request.loseConnection()


def refused(refusal: Refusal, call: Call) -> Answer:
    """A refusal as an answer."""
    headers = dict(refusal.headers)
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    body = error_body(refusal.message, refusal.code, call) | dict(refusal.details)
    return Answer(body, refusal.status, headers)


def error_body(message: str, code: str, call: Call) -> dict[str, object]:
    """The JSON of every error."""
    return {"success": False, "error": message, "code": code, "requestId": call.id}


def write(call: Call, outcome: Answer) -> None:
    """Send an answer; a long one as the client takes it."""
    request, body = call.request, outcome.encoded()
    phrase = _PHRASES.get(outcome.status) or RESPONSES.get(outcome.status, b"Error")
    request.setResponseCode(outcome.status, phrase)
    headers = {
        "Server": f"posd/{__version__}",
        "Content-Type": outcome.media,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        **outcome.headers,
    }
    for name, value in headers.items():
        request.setHeader(name, value)
    if request.method == b"HEAD":
        request.finish()
    elif len(body) > LONG and call.door.unsent is not None:
        call.door.unsent.send(request, body, call.key or call.address)
    else:
        request.write(body)
        request.finish()


def _check_local(call: Call) -> None:
    """No web page in a browser on this machine may use a trusted door (DNS rebinding, CSRF)."""
    local = _LOCAL_HOST.fullmatch(call.header("host") or "")
    if call.header("origin") is not None or local is None or _of_a_page(call):
        raise Forbidden("This listener is for programs on this machine only.")
    kind = (call.header("content-type") or "").lower()
    if call.request.method == b"POST" and not kind.startswith("application/json"):
        raise UnsupportedMediaType("The body must be application/json.")


def _of_a_page(call: Call) -> bool:
    """Whether a browser says that a page wants this, of a picture too, for which there is no Origin.

    `none` is a person who has typed the address (https://www.w3.org/TR/fetch-metadata/).
    """
    return call.header("sec-fetch-site") not in (None, "none")
