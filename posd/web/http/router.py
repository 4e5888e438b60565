"""Finds the operation of a URL."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial

from attrs import define, field, frozen
from twisted.web.resource import Resource
from twisted.web.server import Request

from posd.errors import BadRequest
from posd.memo import memoize
from posd.values import RESERVED
from posd.web.admission import WebSocketAdmission, WebSocketResource
from posd.web.http.dispatch import Dispatcher
from posd.web.http.headers import path_parts
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.operations import SHORT_BODY_BYTES, Operation
from posd.web.http.responses import Handler, Response, handle, method_of, not_allowed, not_found


@frozen
class Routes:
    """All URLs of a listener: WebSockets of tills, and HTTP operations."""

    websocket_admission: WebSocketAdmission
    dispatcher: Dispatcher
    operations: tuple[Operation, ...]


@define(eq=False)
class RouteNode:
    """A node of the tree of path segments."""

    operations: dict[str, Operation] = field(factory=dict)
    children: dict[str, RouteNode] = field(factory=dict)
    variable: tuple[str, RouteNode] | None = None
    """The name of the path parameter that may follow, and the node behind it."""

    def add(self, segments: tuple[str, ...], operation: Operation) -> None:
        """Add an operation at the end of these segments."""
        if not segments:
            self.operations[operation.method] = operation
            return
        first, *rest = segments
        if first.startswith("{"):
            self.variable = self.variable or (first.strip("{}"), RouteNode())
            child = self.variable[1]
        else:
            child = self.children.setdefault(first, RouteNode())
        child.add(tuple(rest), operation)

    def find(self, segments: Iterable[str]) -> tuple[RouteNode, dict[str, str]] | None:
        """Return the node of a path, and its path parameters; None for an unknown path."""
        node, values = self, {}
        for part in segments:
            if part in node.children:
                node = node.children[part]
            elif node.variable is not None and (part or node.variable[0] == "tenant"):
                # An empty tenant is passed on: the dispatcher refuses it with `invalid_tenant`.
                name, node = node.variable
                values[name] = part
            else:
                return None
        return (node, values) if node.operations else None


class Router(Resource):
    """The resource of all URLs except WebSockets. One slash at the end of a path is ignored."""

    isLeaf = True

    def __init__(self, listener_context: ListenerContext, routes: Routes) -> None:
        Resource.__init__(self)
        self._listener_context = listener_context
        self._serve = routes.dispatcher.serve
        self._root = RouteNode()
        for operation in routes.operations:
            self._root.add(operation.segments, operation)
        self._cached_lookup = memoize(self._look_up)

    def render(self, request: Request) -> int:
        return handle(request, self._listener_context, self._handler(request))

    def _look_up(self, path: bytes) -> tuple[RouteNode, dict[str, str]]:
        """Return the node of a path, and its path parameters; an empty node for an unknown path."""
        return self._root.find(_decoded(path_parts(path))) or (RouteNode(), {})

    def body_bytes(self, method: str, path: bytes) -> int:
        """Return the most bytes of a body of a request with this path."""
        node, _ = self._cached_lookup(path)
        operation = node.operations.get(method)
        return SHORT_BODY_BYTES if operation is None else operation.body_bytes

    def _handler(self, request: Request) -> Handler:
        node, values = self._cached_lookup(request.path)
        if not node.operations or values.get("tenant") in RESERVED:
            return not_found
        if values and not _is_text(request.path):
            return _invalid_path
        operation = node.operations.get(method_of(request))
        if operation is None:
            return _method_not_allowed(node.operations)
        return partial(self._serve, operation, values)


class RootResource(Resource):
    """The root resource: passes requests to `WebSocketResource` or to `Router`."""

    isLeaf = True

    def __init__(self, listener_context: ListenerContext, routes: Routes) -> None:
        Resource.__init__(self)
        self._websocket = WebSocketResource(listener_context, routes.websocket_admission)
        self._router = Router(listener_context, routes)

    def render(self, request: Request) -> object:
        if request.postpath is not None and request.postpath[:2] == [b"ws", b"pos"]:
            del request.postpath[:2]
            return self._websocket.render(request)
        return self._router.render(request)

    def body_bytes(self, method: bytes, uri: bytes) -> int:
        """Return the most bytes of a body, by the method and the target of a request."""
        return self._router.body_bytes(method.decode("latin-1"), uri.partition(b"?")[0])


def _decoded(segments: Sequence[bytes]) -> list[str]:
    """Return segments as text. Bytes that are not UTF-8 are replaced, so they match no fixed segment."""
    read = [part.decode(errors="replace") for part in segments]
    if len(read) > 1 and not read[-1]:
        del read[-1]
    return read


@memoize
def _is_text(path: bytes) -> bool:
    try:
        b"/".join(path_parts(path)).decode()
    except UnicodeDecodeError:
        return False
    return True


def _method_not_allowed(methods: Collection[str]) -> Handler:
    async def refuse(http_request: HTTPRequest) -> Response:
        return not_allowed(http_request, methods)

    return refuse


async def _invalid_path(http_request: HTTPRequest) -> Response:
    http_request.check_rate()
    raise BadRequest("The address must be UTF-8.", code="invalid_path")
