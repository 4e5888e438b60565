"""Runs the handlers of requests and sends their answers.

A handler is a coroutine function from an `HTTPRequest` to a `Response`. If it raises a `Refusal`, the refusal
is the answer. Any other exception is a bug: posd logs it with the request id, and answers 500 without its
text. If the client disconnects, the handler runs to its end and posd discards the answer, because a running
statement must not be cancelled here.
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

# The reason phrases that twisted.web does not have.
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
    """An answer: a status, a JSON object and headers."""

    body: Mapping[str, object]
    status: int = 200
    headers: Mapping[str, str] = field(factory=dict)

    @property
    def media_type(self) -> str:
        """The content type."""
        return "application/json"

    def encoded(self) -> bytes:
        """Return the body as bytes."""
        return jsontext.encode(self.body)


@frozen
class PreparedText(Response):
    """An answer whose body was encoded before."""

    text: bytes = b""
    content_type: str = "application/json"

    @property
    def media_type(self) -> str:
        return self.content_type

    def encoded(self) -> bytes:
        return self.text


@frozen
class StreamingResponse(Response):
    """An answer without an end. `begin` is called with the request, and sends the answer.

    `cancel` is called instead if the client has already disconnected.
    """

    begin: Callable[[Request], None] = field(kw_only=True)
    cancel: Callable[[], None] = field(kw_only=True)


Handler = Callable[[HTTPRequest], Awaitable[Response]]


class Endpoint(Resource):
    """The resource of one URL, with a handler for each method."""

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
    """The resource of an unknown URL."""

    isLeaf = True

    def __init__(self, listener_context: ListenerContext) -> None:
        Resource.__init__(self)
        self._listener_context = listener_context

    def render(self, request: Request) -> int:
        return handle(request, self._listener_context, not_found)


def method_of(request: Request) -> str:
    """Return the method whose handler is called: GET for HEAD, which is answered without the body."""
    return "GET" if request.method == b"HEAD" else request.method.decode("latin-1")


def handle(request: Request, listener_context: ListenerContext, handler: Handler) -> int:
    """Answer a request with a handler, later. Return the `NOT_DONE_YET` that `render` must return."""
    respond(HTTPRequest(cast(BoundedRequest, request), listener_context), handler)
    return NOT_DONE_YET


async def not_found(http_request: HTTPRequest) -> Response:
    """Handle a request for an unknown URL."""
    http_request.check_rate()
    raise NotFound("There is nothing at this URL.")


def not_allowed(http_request: HTTPRequest, methods: Collection[str]) -> Response:
    """Return the answer 405 with the allowed methods."""
    http_request.check_rate()
    # HEAD is allowed if GET is (RFC 9110 §10.2.1).
    allowed = {*methods, *(["HEAD"] if "GET" in methods else ())}
    message = (
        _NO_PREFLIGHT if _is_preflight(http_request) else "This URL does not have this method."
    )
    body = error_body(message, "method_not_allowed", http_request)
    return Response(body, 405, {"Allow": ", ".join(sorted(allowed))})


def respond(http_request: HTTPRequest, handler: Handler) -> None:
    """Run a handler, and send its answer unless the client has disconnected."""
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
    """Return a handler's answer, or the error response of the exception that it raises."""
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
    _log.failure("request {id} failed; posd answers with an error", id=http_request.id)
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        # This is temporary: other connections will close theirs.
        return refusal_response(
            Unavailable("posd has no file descriptor left.", retry_after=5), http_request
        )
    return Response(error_body("posd has an internal error.", "internal_error", http_request), 500)


def log_unanswered(failure: Failure, http_request: HTTPRequest) -> None:
    """Log that an answer could not be sent, which is a bug, and close the connection."""
    _log.failure(
        "the answer to request {id} could not be sent; posd closes the connection",
        failure,
        id=http_request.id,
    )
    Request.loseConnection(http_request.request)


def refusal_response(refusal: Refusal, http_request: HTTPRequest) -> Response:
    """Return the answer for a refusal."""
    headers = dict(refusal.headers)
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    body = error_body(refusal.message, refusal.code, http_request) | dict(refusal.details)
    return Response(body, refusal.status, headers)


def error_body(message: str, code: str, http_request: HTTPRequest) -> dict[str, object]:
    """Return the body of an error response."""
    return {"success": False, "error": message, "code": code, "requestId": http_request.id}


def write(http_request: HTTPRequest, response: Response) -> None:
    """Send an answer. A long one is sent in parts, as the client reads."""
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
    """Return fields as lines of a head."""
    if not fields:
        return b""
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    if not lines.count("\r") == lines.count("\n") == len(fields):
        raise ValueError("A header field has a line break in it.")
    return lines.encode()


def _check_local(http_request: HTTPRequest) -> None:
    """Refuse a request that a web page in a local browser may have made (DNS rebinding, CSRF)."""
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
    """Return whether it is a CORS preflight request (https://fetch.spec.whatwg.org)."""
    return http_request.request.method == b"OPTIONS" and bool(
        http_request.headers("access-control-request-method")
    )


def _is_from_page(http_request: HTTPRequest) -> bool:
    """Return whether a web page has made the request, by `Sec-Fetch-Site`.

    Browsers send this header even for images, which have no Origin. `none` means that a person has entered
    the URL (https://www.w3.org/TR/fetch-metadata/). A browser sends the header once, so several lines count
    as a page.
    """
    return http_request.headers("sec-fetch-site") not in ([], ["none"])
