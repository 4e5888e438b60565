"""The resource tree: which address leads to which operation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial

from attrs import define, field, frozen
from twisted.web.resource import Resource
from twisted.web.server import Request

from posd.errors import BadRequest
from posd.memo import memo
from posd.values import RESERVED
from posd.web.admission import Gate, WebSocketDoor
from posd.web.http.call import Call, Door
from posd.web.http.dispatch import Reception
from posd.web.http.headers import path_parts
from posd.web.http.operations import SHORT_BODY_BYTES, Operation
from posd.web.http.requests import Answer, Handler, method_of, missing, not_allowed, take


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
        self._find = memo(self._look_up)

    def render(self, request: Request) -> int:
        return take(request, self._door, self._handler(request))

    def _look_up(self, path: bytes) -> tuple[Crossing, dict[str, str]]:
        """Where a path leads, and the values in it; to a place without operations if nowhere."""
        return self._root.find(_texts(path_parts(path))) or (Crossing(), {})

    def body_bytes(self, method: str, path: bytes) -> int:
        """How long the body of a request with this path may be."""
        place, _ = self._find(path)
        operation = place.operations.get(method)
        return SHORT_BODY_BYTES if operation is None else operation.body_bytes

    def _handler(self, request: Request) -> Handler:
        place, values = self._find(request.path)
        if not place.operations or values.get("tenant") in RESERVED:
            return missing
        if values and not _is_text(request.path):
            return _unreadable
        operation = place.operations.get(method_of(request))
        if operation is None:
            return _only(place.operations)
        return partial(self._serve, operation, values)


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
        return self._addresses.body_bytes(method.decode("latin-1"), uri.partition(b"?")[0])


def _texts(parts: Sequence[bytes]) -> list[str]:
    """The parts of an address; what cannot be read is no name, and may only stand where a value does."""
    read = [part.decode(errors="replace") for part in parts]
    if len(read) > 1 and not read[-1]:
        del read[-1]
    return read


@memo
def _is_text(path: bytes) -> bool:
    try:
        b"/".join(path_parts(path)).decode()
    except UnicodeDecodeError:
        return False
    return True


def _only(methods: Collection[str]) -> Handler:
    async def refuse(call: Call) -> Answer:
        return not_allowed(call, methods)

    return refuse


async def _unreadable(call: Call) -> Answer:
    call.check_rate()
    raise BadRequest("The address must be UTF-8.", code="invalid_path")
