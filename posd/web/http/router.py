"""The resource tree: which address leads to which operation."""

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
    """Everything that can be reached: the tills' door, and what is asked by HTTP."""

    websocket_admission: WebSocketAdmission
    dispatcher: Dispatcher
    operations: tuple[Operation, ...]


@define(eq=False)
class RouteNode:
    """A place in the tree of addresses, and where one can go from there."""

    operations: dict[str, Operation] = field(factory=dict)
    children: dict[str, RouteNode] = field(factory=dict)
    variable: tuple[str, RouteNode] | None = None
    """The crossing behind a part that has a value, and what that value is called."""

    def add(self, segments: tuple[str, ...], operation: Operation) -> None:
        """Put an operation where these parts lead."""
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
        """Where an address leads, and the values in it."""
        node, values = self, {}
        for part in segments:
            if part in node.children:
                node = node.children[part]
            elif node.variable is not None and (part or node.variable[0] == "tenant"):
                # A name that is missing is no tenant's, which is said at the reception.
                name, node = node.variable
                values[name] = part
            else:
                return None
        return (node, values) if node.operations else None


class Router(Resource):
    """All addresses but the tills' door. One slash at the end does not matter."""

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
        """Where a path leads, and the values in it; to a place without operations if nowhere."""
        return self._root.find(_decoded(path_parts(path))) or (RouteNode(), {})

    def body_bytes(self, method: str, path: bytes) -> int:
        """How long the body of a request with this path may be."""
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
    """Tills go to their door, everything else to the addresses."""

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
        """How long the body of a request may be, before there is a request: see `BoundedSite`."""
        return self._router.body_bytes(method.decode("latin-1"), uri.partition(b"?")[0])


def _decoded(segments: Sequence[bytes]) -> list[str]:
    """The parts of an address; what cannot be read is no name, and may only stand where a value does."""
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
