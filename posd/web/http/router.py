"""The resource tree: which address leads to which operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from urllib.parse import unquote_to_bytes

from attrs import define, field, frozen
from twisted.web.resource import Resource
from twisted.web.server import Request

from posd.errors import BadRequest
from posd.values import RESERVED
from posd.web.admission import Gate, WebSocketDoor
from posd.web.http.dispatch import Reception
from posd.web.http.endpoints import Endpoint, Missing
from posd.web.http.operations import SHORT_BODY_BYTES, Operation
from posd.web.http.requests import Answer, Call, Door


@frozen
class Rooms:
    """Everything that can be reached: the tills' door, and what is asked by HTTP."""

    gate: Gate
    reception: Reception
    operations: tuple[Operation, ...]


@define(eq=False)
class Crossing:
    """A place in the tree of addresses, and where one can go from there."""

    operations: dict[str, Operation] = field(factory=dict)
    named: dict[str, Crossing] = field(factory=dict)
    any: tuple[str, Crossing] | None = None
    """The crossing behind a part that has a value, and what that value is called."""

    def add(self, parts: tuple[str, ...], operation: Operation) -> None:
        """Put an operation where these parts lead."""
        if not parts:
            self.operations[operation.method] = operation
            return
        first, *rest = parts
        if first.startswith("{"):
            self.any = self.any or (first.strip("{}"), Crossing())
            following = self.any[1]
        else:
            following = self.named.setdefault(first, Crossing())
        following.add(tuple(rest), operation)

    def find(self, parts: Iterable[str]) -> tuple[Crossing, dict[str, str]] | None:
        """Where an address leads, and the values in it."""
        place, values = self, {}
        for part in parts:
            if part in place.named:
                place = place.named[part]
            elif place.any is not None and (part or place.any[0] == "tenant"):
                # A name that is missing is no tenant's, which is said at the reception.
                name, place = place.any
                values[name] = part
            else:
                return None
        return (place, values) if place.operations else None


class Addresses(Resource):
    """All addresses but the tills' door. One slash at the end does not matter."""

    isLeaf = True

    def __init__(self, door: Door, rooms: Rooms) -> None:
        Resource.__init__(self)
        self._door = door
        self._serve = rooms.reception.serve
        self._root = Crossing()
        for operation in rooms.operations:
            self._root.add(operation.parts, operation)

    def render(self, request: Request) -> object:
        return self._endpoint(request).render(request)

    def body_bytes(self, method: str, parts: Sequence[bytes]) -> int:
        """How long the body of a request to this address may be."""
        found = self._root.find(_texts(parts))
        operation = None if found is None else found[0].operations.get(method)
        return SHORT_BODY_BYTES if operation is None else operation.body_bytes

    def _endpoint(self, request: Request) -> Resource:
        found = self._root.find(_texts(request.postpath or []))
        if found is None:
            return Missing(self._door)
        place, values = found
        if not _is_text(request.postpath or []):
            return Endpoint(self._door, **dict.fromkeys(place.operations, _unreadable))
        if values.get("tenant") in RESERVED:
            return Missing(self._door)
        bound = {
            method: partial(self._serve, operation, values)
            for method, operation in place.operations.items()
        }
        return Endpoint(self._door, **bound)


class Root(Resource):
    """Tills go to their door, everything else to the addresses."""

    isLeaf = True

    def __init__(self, door: Door, rooms: Rooms) -> None:
        Resource.__init__(self)
        self._tills = WebSocketDoor(door, rooms.gate)
        self._addresses = Addresses(door, rooms)

    def render(self, request: Request) -> object:
        if request.postpath is not None and request.postpath[:2] == [b"ws", b"pos"]:
            del request.postpath[:2]
            return self._tills.render(request)
        return self._addresses.render(request)

    def body_bytes(self, method: bytes, uri: bytes) -> int:
        """How long the body of a request may be, before there is a request: see `BoundedSite`."""
        parts = [unquote_to_bytes(part) for part in uri.partition(b"?")[0].split(b"/")[1:]]
        return self._addresses.body_bytes(method.decode("latin-1"), parts)


def _texts(parts: Sequence[bytes]) -> list[str]:
    """The parts of an address; what cannot be read is no name, and may only stand where a value does."""
    read = [part.decode(errors="replace") for part in parts]
    if len(read) > 1 and not read[-1]:
        del read[-1]
    return read


def _is_text(parts: Iterable[bytes]) -> bool:
    try:
        b"/".join(parts).decode()
    except UnicodeDecodeError:
        return False
    return True


async def _unreadable(call: Call) -> Answer:
    raise BadRequest("The address must be UTF-8.", code="invalid_path")
