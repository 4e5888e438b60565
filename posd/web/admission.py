"""Who may connect a till: everything is decided here, before the upgrade, where refusals are JSON."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, cast
from uuid import UUID, uuid4

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from posd.delivery.hub import Admitted, Exchange
from posd.errors import BadRequest, NotFound, Refusal
from posd.security.auth import Authenticator, of_kind
from posd.security.connection_limits import Connections
from posd.values import SLUG, KeyKind, Position, Principal, Tenant, Terminal
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.call import Call, Door
from posd.web.http.channel import BoundedChannel
from posd.web.http.refusal_log import Strangers
from posd.web.http.requests import Answer, answer, unanswered, write
from posd.web.websocket import TillFactory

_POSITION: Final = re.compile(r"[0-9]{1,18}")


class UpgradeRequired(Refusal):
    """A plain request where a WebSocket is spoken."""

    status = 426
    code = "upgrade_required"
    # RFC 9110 §15.5.22, RFC 6455 §4.2.2.
    headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@define(eq=False)
class Admission:
    """Lets in those whose key is good: counts their connection and looks up where they stand."""

    exchange: Exchange
    connections: Connections

    async def admit(
        self, tenant: Tenant, principal: Principal, device: str | None, position: Position | None
    ) -> Admitted:
        """A place for one more connection. Raises `TooManyRequests` and `Unavailable`."""
        lease = self.connections.admit(tenant.id, device)
        try:
            opening = await self.exchange.look_up(tenant, device, position)
        except BaseException:
            lease.release()
            raise
        terminal = Terminal(
            uuid4(), tenant, principal, device, position, opening.at, opening.head.stream_id
        )
        return Admitted(terminal, opening, lease.release)


@define(eq=False)
class Gate:
    """What the door needs to know, and whom it hands admitted connections to."""

    authenticator: Authenticator
    admission: Admission
    factory: TillFactory
    strangers: Strangers = field(factory=Strangers)


class WebSocketDoor(Resource):
    """`/ws/pos/{tenant}`."""

    isLeaf = True
    _log = Logger()

    def __init__(self, door: Door, gate: Gate) -> None:
        Resource.__init__(self)
        self._door = door
        self._gate = gate

    def render(self, request: Request) -> object:
        call = Call(cast(BoundedRequest, request), self._door)
        admitted = Deferred.fromCoroutine(self._admit_or_answer(call))
        admitted.addErrback(unanswered, call)
        return NOT_DONE_YET

    async def _admit_or_answer(self, call: Call) -> None:
        admitted: list[Admitted] = []
        call.operation = "GET /ws/pos/{tenant}"

        async def admit(call: Call) -> Answer:
            admitted.append(await self._admit(call))
            return Answer({}, 101)

        outcome = await answer(call, admit)
        if not admitted:
            code = str(outcome.body.get("code"))
            self._gate.strangers.till_refused(call, _last(call), outcome.status, code)
        if call.request.gone:
            # The peer went away while its key was looked up: a session now would be a ghost.
            for each in admitted:
                each.left()
        elif admitted:
            self._upgrade(call.request, admitted[0])
        else:
            write(call, outcome)

    def _upgrade(self, request: BoundedRequest, admitted: Admitted) -> None:
        channel = cast(BoundedChannel, request.channel)
        transport = channel.transport
        try:
            self._gate.factory.upgrade(request, admitted)
        except Exception:
            self._log.failure("an upgrade failed")
            admitted.left()
            transport.abortConnection()
        finally:
            channel.left()

    async def _admit(self, call: Call) -> Admitted:
        """Check everything, in an order that tells a stranger nothing about tenants."""
        call.check_rate()
        slug = self._slug(call)
        _check_handshake(call)
        position = resume_position(call)
        device = call.device
        credential = await self._gate.authenticator.at_tenant(slug, call.key, device, call.address)
        of_kind(credential.principal, KeyKind.TENANT, KeyKind.DEVICE)
        call.check_tenant(slug)
        device = credential.principal.device_id or device
        return await self._gate.admission.admit(
            credential.tenant, credential.principal, device, position
        )

    def _slug(self, call: Call) -> str:
        if len(call.request.postpath or []) != 1:
            raise NotFound("Tills connect at /ws/pos/{tenant}.")
        slug = _last(call)
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is not the slug of a tenant.", code="invalid_tenant")
        return slug


def _last(call: Call) -> str:
    """The last part of the address, where a tenant is named."""
    path = call.request.postpath
    return path[-1].decode("latin-1") if path else ""


def _check_handshake(call: Call) -> None:
    """Check what RFC 6455 §4.2.1 demands. Autobahn would refuse it without a body.

    Upgrade and Connection are lists (RFC 9110 §7.6.1, §7.8). Proxies join and split their lines.
    """
    request = (call.request.method, call.request.clientproto)
    wanted = "websocket" in call.members("upgrade") and "upgrade" in call.members("connection")
    if request != (b"GET", b"HTTP/1.1") or not wanted:
        raise UpgradeRequired("This URL is for WebSocket connections only.")
    if set(call.headers("sec-websocket-version")) != {"13"}:
        raise UpgradeRequired("posd supports only version 13 of the WebSocket protocol.")
    keys = call.headers("sec-websocket-key")
    try:
        fits = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        fits = False
    if not fits:
        raise BadRequest(
            "Sec-WebSocket-Key is not valid: see RFC 6455, section 4.1.", code="invalid_handshake"
        )


def resume_position(call: Call) -> Position | None:
    """The position to resume after: from the header `Last-Event-ID`, else from the query.

    The header counts where both are sent. A client that reconnects by itself keeps the URL of its first
    attempt, and puts the last id that it has seen into the header (WHATWG HTML §9.2.2). An empty
    header counts as not sent. Raises `BadRequest`.
    """
    named = call.header("last-event-id") or call.parameter("last_event_id")
    if named is None:
        return None
    if _POSITION.fullmatch(named) is None:
        raise BadRequest(
            "last_event_id and Last-Event-ID must be a position.", code="invalid_position"
        )
    stream = call.parameter("stream_id")
    try:
        return Position(int(named), None if not stream else UUID(stream))
    except ValueError as error:
        raise BadRequest("stream_id must be a UUID.", code="invalid_position") from error
