"""Asynchronous endpoints: one way to answer, one way to fail, for every one of them.

An endpoint is a coroutine from a `Call` to an `Answer`; a `Refusal` that it raises is an answer
too. Anything else is a bug: logged with its request id, answered with 500 and nothing of its text. A
client that goes away stops nothing: what was begun is finished, for a statement that runs in
PostgreSQL must not be cancelled from here, and only the answer is dropped.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, cast

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd import __version__
from posd.errors import (
    Forbidden,
    NotFound,
    Refusal,
    Unavailable,
    UnsupportedMediaType,
)
from posd.protocol import jsontext
from posd.security.addresses import place
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.call import Call, Door
from posd.web.http.headers import is_loopback
from posd.web.http.unsent import LONG

# Those that twisted.web does not know.
_PHRASES: Final = {
    422: b"Unprocessable Content",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
}
_NO_PREFLIGHT: Final = (
    "posd answers no web page of another origin (CORS); call it from that page's server."
)
_FIELDS: Final = (
    b"Server: posd/%b\r\nContent-Type: %%b\r\nContent-Length: %%d\r\nCache-Control: no-store\r\n%%b"
    % __version__.encode()
)
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)

_log = Logger()


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


Handler = Callable[[Call], Awaitable[Answer]]


class Endpoint(Resource):
    """One URL: a handler for each of its methods."""

    isLeaf = True

    def __init__(self, door: Door, **handlers: Handler) -> None:
        Resource.__init__(self)
        self._door = door
        self._handlers = handlers

    def render(self, request: Request) -> int:
        handler = self._handlers.get(method_of(request))
        return take(request, self._door, handler or self._not_allowed)

    async def _not_allowed(self, call: Call) -> Answer:
        return not_allowed(call, self._handlers)


class Missing(Resource):
    """A path that leads nowhere."""

    isLeaf = True

    def __init__(self, door: Door) -> None:
        Resource.__init__(self)
        self._door = door

    def render(self, request: Request) -> int:
        return take(request, self._door, missing)


def method_of(request: Request) -> str:
    """The method whose handler is asked: HEAD is answered as GET, without the body."""
    return "GET" if request.method == b"HEAD" else request.method.decode("latin-1")


def take(request: Request, door: Door, handler: Handler) -> int:
    """Answer a request by a handler, whenever that has an answer. Returns what `render` returns then."""
    respond(Call(cast(BoundedRequest, request), door), handler)
    return NOT_DONE_YET


async def missing(call: Call) -> Answer:
    """The handler of an address that leads nowhere."""
    call.check_rate()
    raise NotFound("There is nothing at this URL.")


def not_allowed(call: Call, methods: Collection[str]) -> Answer:
    """What is answered where only these methods are allowed."""
    call.check_rate()
    # Where there is a GET, HEAD is answered too (RFC 9110 §10.2.1).
    allowed = {*methods, *(["HEAD"] if "GET" in methods else ())}
    said = _NO_PREFLIGHT if _is_preflight(call) else "This URL does not have this method."
    body = error_body(said, "method_not_allowed", call)
    return Answer(body, 405, {"Allow": ", ".join(sorted(allowed))})


def respond(call: Call, handler: Handler) -> None:
    """Run a handler and send its answer, if the client is still there."""
    Deferred.fromCoroutine(_respond(call, handler))


async def _respond(call: Call, handler: Handler) -> None:
    try:
        outcome = await answer(call, handler)
        gone = call.request.gone
        if isinstance(outcome, Takeover):
            outcome.forgo() if gone else outcome.begin(call.request)
        elif not gone:
            write(call, outcome)
    except Exception:
        unanswered(Failure(), call)


async def answer(call: Call, handler: Handler) -> Answer:
    """A handler's answer, or the one that its failure is."""
    try:
        if call.door.trusted:
            _check_local(call)
        outcome = await handler(call)
    except Refusal as refusal:
        outcome = refused(refusal, call)
    except Exception as error:
        outcome = _failed(error, call)
    call.forget_body()
    call.door.served(call.operation, outcome.status, time.monotonic() - call.began)
    return outcome


def _failed(error: Exception, call: Call) -> Answer:
    _log.failure("request {id} failed", id=call.id)
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        # It passes when others have closed theirs.
        return refused(Unavailable("posd has no file descriptor left.", retry_after=5), call)
    return Answer(error_body("posd has an internal error.", "internal_error", call), 500)


def unanswered(failure: Failure, call: Call) -> None:
    """There is a bug in how an answer is sent; whoever waits for it learns that there is none."""
    _log.failure("no answer to {id}", failure, id=call.id)
    Request.loseConnection(call.request)


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
    request, body, unsent = call.request, outcome.encoded(), call.door.unsent
    phrase = _PHRASES.get(outcome.status) or RESPONSES.get(outcome.status, b"Error")
    status = b"%d %b" % (outcome.status, phrase)
    fields = _FIELDS % (outcome.media.encode(), len(body), _lines(outcome.headers))
    if request.method == b"HEAD":
        request.answer(status, fields)
    elif len(body) > LONG and unsent is not None:
        request.begin(status, fields)
        unsent.send(request, body, call.account or place(call.address))
    else:
        request.answer(status, fields, body)


def _lines(fields: Mapping[str, str]) -> bytes:
    """Fields as they stand in a head."""
    if not fields:
        return b""
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if not lines.count("\r") == lines.count("\n") == len(fields):
        raise ValueError("A header field has a line break in it.")
    return lines.encode()


def _check_local(call: Call) -> None:
    """Refuse what a web page in a browser on this machine asks for (DNS rebinding, CSRF)."""
    if call.headers("origin") or not is_loopback(call.header("host") or "") or _of_a_page(call):
        raise Forbidden("This listener accepts only requests from programs on this machine.")
    kind = (call.header("content-type") or "").lower()
    if call.request.method == b"POST" and not kind.startswith("application/json"):
        raise UnsupportedMediaType("The body must be application/json.")


def _is_preflight(call: Call) -> bool:
    """Whether a browser asks for a page of another origin (https://fetch.spec.whatwg.org, CORS)."""
    return call.request.method == b"OPTIONS" and bool(call.headers("access-control-request-method"))


def _of_a_page(call: Call) -> bool:
    """Whether a browser says that a page asks, also for a picture, for which it sends no Origin.

    `none` is a person who has typed the address (https://www.w3.org/TR/fetch-metadata/). A browser
    sends the header once, so two of them come from something else.
    """
    return call.headers("sec-fetch-site") not in ([], ["none"])
