"""The resource tree: which address leads to which endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from attrs import frozen
from twisted.web.resource import Resource
from twisted.web.server import Request

from posd.errors import BadRequest
from posd.values import SLUG
from posd.web.admission import Gate, WebSocketDoor
from posd.web.health import HealthEndpoints
from posd.web.publishing import Publisher
from posd.web.render import Answer, Call, Door, Endpoint, Missing
from posd.web.status import Monitor

TenantHandler = Callable[[Call, str], Awaitable[Answer]]


@frozen
class Rooms:
    """All groups of endpoints."""

    gate: Gate
    publisher: Publisher
    monitor: Monitor
    health: HealthEndpoints


class Folder(Resource):
    """An address that is the beginning of others; with or without a slash it has `index` itself."""

    def __init__(self, door: Door, index: Endpoint | None = None) -> None:
        Resource.__init__(self)
        self._missing = Missing(door)
        self._index = index or self._missing

    def getChild(self, path: bytes, request: Request) -> Resource:
        return self._missing if path else self._index

    def render(self, request: Request) -> int:
        return self._index.render(request)


class Tenants(Resource):
    """`/api/{tenant}/…`: the tenant's name, then one of `routes`."""

    isLeaf = True

    def __init__(self, door: Door, routes: dict[tuple[str, ...], dict[str, TenantHandler]]) -> None:
        Resource.__init__(self)
        self._door = door
        self._routes = routes

    def render(self, request: Request) -> int:
        slug, *rest = (part.decode("latin-1") for part in request.postpath or [b""])
        handlers = self._routes.get(tuple(rest))
        if handlers is None:
            return Missing(self._door).render(request)
        if SLUG.fullmatch(slug) is None:
            return Endpoint(self._door, **dict.fromkeys(handlers, _no_tenant)).render(request)
        bound = {method: partial(_at, handler, slug) for method, handler in handlers.items()}
        return Endpoint(self._door, **bound).render(request)


def tree(door: Door, rooms: Rooms) -> Resource:
    """The tree as one listener serves it."""
    tenants = Tenants(
        door,
        {
            ("events",): {"POST": rooms.publisher.events},
            ("pos-status",): {"GET": rooms.monitor.status},
        },
    )
    root, ws = Folder(door), Folder(door)
    health = Folder(door, Endpoint(door, GET=rooms.health.deployed))
    root.putChild(b"ws", ws)
    ws.putChild(b"pos", WebSocketDoor(door, rooms.gate))
    root.putChild(b"api", tenants)
    root.putChild(b"broadcast", Endpoint(door, POST=rooms.publisher.broadcast))
    root.putChild(b"health", health)
    health.putChild(b"live", Endpoint(door, GET=rooms.health.live))
    health.putChild(b"ready", Endpoint(door, GET=rooms.health.ready))
    return root


async def _at(handler: TenantHandler, slug: str, call: Call) -> Answer:
    return await handler(call, slug)


async def _no_tenant(call: Call) -> Answer:
    raise BadRequest("This is no tenant's name.", code="invalid_tenant")
