"""Resources of twisted.web for one address: its methods, or that there is nothing at it."""

from __future__ import annotations

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.errors import NotFound
from posd.web.http.requests import Answer, Call, Door, Handler, error_body, respond, write


class Endpoint(Resource):
    """One URL: a handler for each of its methods."""

    isLeaf = True

    def __init__(self, door: Door, **handlers: Handler) -> None:
        Resource.__init__(self)
        self._door = door
        self._handlers = handlers

    def render(self, request: Request) -> int:
        method = "GET" if request.method == b"HEAD" else request.method.decode("latin-1")
        handler = self._handlers.get(method)
        call = Call(request, self._door)
        if handler is None:
            allowed = ", ".join(sorted(self._handlers))
            body = error_body("This method is not allowed here.", "method_not_allowed", call)
            self._door.served(call.operation, 405, 0.0)
            write(call, Answer(body, 405, {"Allow": allowed}))
        else:
            respond(call, handler)
        return NOT_DONE_YET


class Missing(Resource):
    """A path that leads nowhere."""

    isLeaf = True

    def __init__(self, door: Door) -> None:
        Resource.__init__(self)
        self._door = door

    def render(self, request: Request) -> int:
        respond(Call(request, self._door), _missing)
        return NOT_DONE_YET


async def _missing(call: Call) -> Answer:
    raise NotFound("There is nothing at this address.")
