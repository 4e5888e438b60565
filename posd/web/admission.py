"""Admits tills: checks a connection request before the upgrade to a WebSocket.

Before the upgrade a refusal is an HTTP response with a JSON body.
"""

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

from posd.delivery.hub import Admitted, Hub
from posd.errors import BadRequest, NotFound, Refusal
from posd.security.auth import Authenticator, require_kind
from posd.security.connection_limits import ConnectionLimits
from posd.values import SLUG, KeyKind, Position, Principal, Tenant, Terminal
from posd.web.http.bounded_request import BoundedRequest
from posd.web.http.channel import BoundedChannel
from posd.web.http.http_request import HTTPRequest, ListenerContext
from posd.web.http.refusal_log import RefusalLog
from posd.web.http.responses import Response, answer, log_unanswered, write
from posd.web.websocket import TillFactory

_POSITION: Final = re.compile(r"[0-9]{1,18}")


class UpgradeRequired(Refusal):
    """The URL of a WebSocket was requested without a valid upgrade."""

    status = 426
    code = "upgrade_required"
    # RFC 9110 §15.5.22, RFC 6455 §4.2.2.
    headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@define(eq=False)
class AdmissionCheck:
    """Counts the connection of an authenticated till, and looks up the position of the terminal."""

    hub: Hub
    connections: ConnectionLimits

    async def admit(
        self, tenant: Tenant, principal: Principal, device: str | None, position: Position | None
    ) -> Admitted:
        """Admit one more connection of a terminal. Raises `TooManyRequests` and `Unavailable`."""
        lease = self.connections.admit(tenant.id, device)
        try:
            session_start = await self.hub.look_up(tenant, device, position)
        except BaseException:
            lease.release()
            raise
        terminal = Terminal(
            uuid4(),
            tenant,
            principal,
            device,
            position,
            session_start.at,
            session_start.head.stream_id,
        )
        return Admitted(terminal, session_start, lease.release)


@define(eq=False)
class WebSocketAdmission:
    """The dependencies of `WebSocketResource`."""

    authenticator: Authenticator
    admission: AdmissionCheck
    factory: TillFactory
    refusal_log: RefusalLog = field(factory=RefusalLog)


class WebSocketResource(Resource):
    """The resource of `/ws/pos/{tenant}`, where tills open WebSockets."""

    isLeaf = True
    _log = Logger()

    def __init__(
        self, listener_context: ListenerContext, websocket_admission: WebSocketAdmission
    ) -> None:
        Resource.__init__(self)
        self._listener_context = listener_context
        self._websocket_admission = websocket_admission

    def render(self, request: Request) -> object:
        http_request = HTTPRequest(cast(BoundedRequest, request), self._listener_context)
        admitted = Deferred.fromCoroutine(self._admit_or_answer(http_request))
        admitted.addErrback(log_unanswered, http_request)
        return NOT_DONE_YET

    async def _admit_or_answer(self, http_request: HTTPRequest) -> None:
        admitted: list[Admitted] = []
        http_request.operation = "GET /ws/pos/{tenant}"

        async def admit(http_request: HTTPRequest) -> Response:
            admitted.append(await self._admit(http_request))
            return Response({}, 101)

        response = await answer(http_request, admit)
        if not admitted:
            code = str(response.body.get("code"))
            self._websocket_admission.refusal_log.handshake_refused(
                http_request, _last_segment(http_request), response.status, code
            )
        if http_request.request.is_disconnected:
            # The client has disconnected during the lookup, so no event would ever end a new session.
            for each in admitted:
                each.left()
        elif admitted:
            self._upgrade(http_request.request, admitted[0])
        else:
            write(http_request, response)

    def _upgrade(self, request: BoundedRequest, admitted: Admitted) -> None:
        channel = cast(BoundedChannel, request.channel)
        transport = channel.transport
        try:
            self._websocket_admission.factory.upgrade(request, admitted)
        except Exception:
            self._log.failure(
                "the upgrade of a till's connection failed; posd closes it: tenant={tenant}",
                tenant=admitted.terminal.tenant.slug,
            )
            admitted.left()
            transport.abortConnection()
        finally:
            channel.left()

    async def _admit(self, http_request: HTTPRequest) -> Admitted:
        """Check a request. The key comes first, so that a client without one learns nothing about tenants."""
        http_request.check_rate()
        slug = self._slug(http_request)
        _check_handshake(http_request)
        position = resume_position(http_request)
        device = http_request.device
        credential = await self._websocket_admission.authenticator.find_credential(
            slug, http_request.key, device, http_request.address
        )
        require_kind(credential.principal, KeyKind.TENANT, KeyKind.DEVICE)
        http_request.check_tenant(slug)
        device = credential.principal.device_id or device
        return await self._websocket_admission.admission.admit(
            credential.tenant, credential.principal, device, position
        )

    def _slug(self, http_request: HTTPRequest) -> str:
        if len(http_request.request.postpath or []) != 1:
            raise NotFound("Tills connect at /ws/pos/{tenant}.")
        slug = _last_segment(http_request)
        if SLUG.fullmatch(slug) is None:
            raise BadRequest("This is not the slug of a tenant.", code="invalid_tenant")
        return slug


def _last_segment(http_request: HTTPRequest) -> str:
    """Return the last segment of the path, which is the slug of a tenant."""
    path = http_request.request.postpath
    return path[-1].decode("latin-1") if path else ""


def _check_handshake(http_request: HTTPRequest) -> None:
    """Check the handshake by RFC 6455 §4.2.1. Raises `UpgradeRequired` and `BadRequest`.

    Autobahn would refuse a bad handshake without a body. Upgrade and Connection are lists (RFC 9110 §7.6.1,
    §7.8), whose lines proxies may join or split.
    """
    request = (http_request.request.method, http_request.request.clientproto)
    is_upgrade = "websocket" in http_request.members(
        "upgrade"
    ) and "upgrade" in http_request.members("connection")
    if request != (b"GET", b"HTTP/1.1") or not is_upgrade:
        raise UpgradeRequired("This URL is for WebSocket connections only.")
    if set(http_request.headers("sec-websocket-version")) != {"13"}:
        raise UpgradeRequired("posd supports only version 13 of the WebSocket protocol.")
    keys = http_request.headers("sec-websocket-key")
    try:
        is_valid = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        is_valid = False
    if not is_valid:
        raise BadRequest(
            "Sec-WebSocket-Key is not valid: see RFC 6455, section 4.1.", code="invalid_handshake"
        )


def resume_position(http_request: HTTPRequest) -> Position | None:
    """Return the position to resume after: from the header `Last-Event-ID`, or else from the query.

    The header takes precedence. A client that reconnects automatically keeps the URL of its first request,
    and sends the last id that it has received in the header (WHATWG HTML §9.2.2). An empty header is ignored.
    Raises `BadRequest` (`invalid_position`).
    """
    named = http_request.header("last-event-id") or http_request.parameter("last_event_id")
    if named is None:
        return None
    if _POSITION.fullmatch(named) is None:
        raise BadRequest(
            "last_event_id and Last-Event-ID must be a position.", code="invalid_position"
        )
    stream = http_request.parameter("stream_id")
    try:
        return Position(int(named), None if not stream else UUID(stream))
    except ValueError as error:
        raise BadRequest("stream_id must be a UUID.", code="invalid_position") from error
