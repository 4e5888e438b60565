"""Asynchronous endpoints: one way to answer, one way to fail, for every one of them.

An endpoint is a coroutine from a `HTTPRequest` to an `Response`; a `Refusal` that it raises is an answer
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
from posd.security.addresses import address_bucket
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.headers import is_loopback
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.long_answers import LONG

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
class Response:
    """What goes out: a status, a JSON object and headers."""

    body: Mapping[str, object]
    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)

    @property
    def media_type(self) -> str:
        """Its content type."""
        return "application/json"

    def encoded(self) -> bytes:
        """Its body as it is sent."""
        return jsontext.encode(self.body)


@frozen
class PreparedText(Response):
    """A text that was made before, in the place of an object."""

    text: bytes = b""
    content_type: str = "application/json"

    @property
    def media_type(self) -> str:
        return self.content_type

    def encoded(self) -> bytes:
        return self.text


@frozen
class StreamingResponse(Response):
    """An answer that goes on for long: `begin` has the request from then on.

    `cancel` is called instead if whoever asked has gone meanwhile.
    """

    begin: Callable[[Request], None] = field(kw_only=True)
    cancel: Callable[[], None] = field(kw_only=True)


Handler = Callable[[HTTPRequest], Awaitable[Response]]


class Endpoint(Resource):
    """One URL: a handler for each of its methods."""

    isLeaf = True

    def __init__(self, listener_context: ListenerContext, **handlers: Handler) -> None:
        Resource.__init__(self)
        self._listener_context = listener_context
        self._handlers = handlers

    def render(self, request: Request) -> int:
        handler = self._handlers.get(method_of(request))
        return handle(request, self._listener_context, handler or self._not_allowed)

    async def _not_allowed(self, http_request: HTTPRequest) -> Response:
        return not_allowed(http_request, self._handlers)


class NotFoundResource(Resource):
    """A path that leads nowhere."""

    isLeaf = True

    def __init__(self, listener_context: ListenerContext) -> None:
        Resource.__init__(self)
        self._listener_context = listener_context

    def render(self, request: Request) -> int:
        return handle(request, self._listener_context, not_found)


def method_of(request: Request) -> str:
    """The method whose handler is asked: HEAD is answered as GET, without the body."""
    return "GET" if request.method == b"HEAD" else request.method.decode("latin-1")


def handle(request: Request, listener_context: ListenerContext, handler: Handler) -> int:
    """Answer a request by a handler, whenever that has an answer. Returns what `render` returns then."""
    respond(HTTPRequest(cast(BoundedRequest, request), listener_context), handler)
    return NOT_DONE_YET


async def not_found(http_request: HTTPRequest) -> Response:
    """The handler of an address that leads nowhere."""
    http_request.check_rate()
    raise NotFound("There is nothing at this URL.")


def not_allowed(http_request: HTTPRequest, methods: Collection[str]) -> Response:
    """What is answered where only these methods are allowed."""
    http_request.check_rate()
    # Where there is a GET, HEAD is answered too (RFC 9110 §10.2.1).
    allowed = {*methods, *(["HEAD"] if "GET" in methods else ())}
    message = (
        _NO_PREFLIGHT if _is_preflight(http_request) else "This URL does not have this method."
    )
    body = error_body(message, "method_not_allowed", http_request)
    return Response(body, 405, {"Allow": ", ".join(sorted(allowed))})


def respond(http_request: HTTPRequest, handler: Handler) -> None:
    """Run a handler and send its answer, if the client is still there."""
    Deferred.fromCoroutine(_respond(http_request, handler))


async def _respond(http_request: HTTPRequest, handler: Handler) -> None:
    try:
        response = await answer(http_request, handler)
        is_disconnected = http_request.request.is_disconnected
        if isinstance(response, StreamingResponse):
            response.cancel() if is_disconnected else response.begin(http_request.request)
        elif not is_disconnected:
            write(http_request, response)
    except Exception:
        log_unanswered(Failure(), http_request)


async def answer(http_request: HTTPRequest, handler: Handler) -> Response:
    """A handler's answer, or the one that its failure is."""
    try:
        if http_request.listener_context.trusted:
            _check_local(http_request)
        response = await handler(http_request)
    except Refusal as refusal:
        response = refusal_response(refusal, http_request)
    except Exception as error:
        response = _failure_response(error, http_request)
    http_request.forget_body()
    http_request.listener_context.served(
        http_request.operation, response.status, time.monotonic() - http_request.began
    )
    return response


def _failure_response(error: Exception, http_request: HTTPRequest) -> Response:
    _log.failure("request {id} failed", id=http_request.id)
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        # It passes when others have closed theirs.
        return refusal_response(
            Unavailable("posd has no file descriptor left.", retry_after=5), http_request
        )
    return Response(error_body("posd has an internal error.", "internal_error", http_request), 500)


def log_unanswered(failure: Failure, http_request: HTTPRequest) -> None:
    """There is a bug in how an answer is sent; whoever waits for it learns that there is none."""
    _log.failure("no answer to {id}", failure, id=http_request.id)
    Request.loseConnection(http_request.request)


def refusal_response(refusal: Refusal, http_request: HTTPRequest) -> Response:
    """A refusal as an answer."""
    headers = dict(refusal.headers)
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    body = error_body(refusal.message, refusal.code, http_request) | dict(refusal.details)
    return Response(body, refusal.status, headers)


def error_body(message: str, code: str, http_request: HTTPRequest) -> dict[str, object]:
    """The JSON of every error."""
    return {"success": False, "error": message, "code": code, "requestId": http_request.id}


def write(http_request: HTTPRequest, response: Response) -> None:
    """Send an answer; a long one as the client takes it."""
    request, body, unsent = (
        http_request.request,
        response.encoded(),
        http_request.listener_context.unsent,
    )
    phrase = _PHRASES.get(response.status) or RESPONSES.get(response.status, b"Error")
    status = b"%d %b" % (response.status, phrase)
    fields = _FIELDS % (response.media_type.encode(), len(body), _header_lines(response.headers))
    if request.method == b"HEAD":
        request.answer(status, fields)
    elif len(body) > LONG and unsent is not None:
        request.begin(status, fields)
        unsent.send(request, body, http_request.account or address_bucket(http_request.address))
    else:
        request.answer(status, fields, body)


def _header_lines(fields: Mapping[str, str]) -> bytes:
    """Fields as they stand in a head."""
    if not fields:
        return b""
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if not lines.count("\r") == lines.count("\n") == len(fields):
        raise ValueError("A header field has a line break in it.")
    return lines.encode()


def _check_local(http_request: HTTPRequest) -> None:
    """Refuse what a web page in a browser on this machine asks for (DNS rebinding, CSRF)."""
    if (
        http_request.headers("origin")
        or not is_loopback(http_request.header("host") or "")
        or _is_from_page(http_request)
    ):
        raise Forbidden("This listener accepts only requests from programs on this machine.")
    kind = (http_request.header("content-type") or "").lower()
    if http_request.request.method == b"POST" and not kind.startswith("application/json"):
        raise UnsupportedMediaType("The body must be application/json.")


def _is_preflight(http_request: HTTPRequest) -> bool:
    """Whether a browser asks for a page of another origin (https://fetch.spec.whatwg.org, CORS)."""
    return http_request.request.method == b"OPTIONS" and bool(
        http_request.headers("access-control-request-method")
    )


def _is_from_page(http_request: HTTPRequest) -> bool:
    """Whether a browser says that a page asks, also for a picture, for which it sends no Origin.

    `none` is a person who has typed the address (https://www.w3.org/TR/fetch-metadata/). A browser
    sends the header once, so two of them come from something else.
    """
    return http_request.headers("sec-fetch-site") not in ([], ["none"])
