"""The requests of a platform, the meaning of the responses, and the rules for retries, without I/O.

Both broadcasters share this module, and add only the transport.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Generic, TypeVar

from attrs import define, field, frozen

from posd.broadcaster.subjects import event_data, is_offline, plain_members
from posd.errors import InvalidMessage, PosdError
from posd.files import strip_secret
from posd.protocol.jsontext import decode, encode
from posd.security.dialing import Backoff, BaseUrl, Random, explain, retry_after, tls_failure
from posd.values import PublishWarning

T = TypeVar("T")

ATTEMPTS = 5
ATTEMPT_TIMEOUT = 5.0
"""Seconds for one attempt. Then the request is repeated with the same idempotency key."""

_BACKOFF = Backoff(initial=0.25, maximum=4)
_PASSING = frozenset((408, 429, 502, 503, 504))
_STILL_RUNNING = "still_running"
_MAX_KEY_LENGTH = 255
_NOT_POSD = "the response is not one of posd"


@frozen
class PublishedEvent:
    """The result of a publication.

    `id` is the position of the event in the tenant's stream, or None if the order had not changed.
    `connections` is the number of connected tills of the tenant. `dropped` is true if the order is not
    an online order, so nothing was sent. `warnings` name values that posd repaired or could not read.
    """

    id: int | None
    connections: int
    dropped: bool = False
    warnings: tuple[PublishWarning, ...] = ()


NOT_ONLINE = PublishedEvent(id=None, connections=0, dropped=True)


@frozen
class TerminalStats:
    """A connected terminal. `behind` is the number of events that it has not acknowledged."""

    device_id: str | None
    behind: int | None


@frozen
class ConnectionStats:
    """The connected tills of a tenant. `body` is the whole response of `pos-status`."""

    active: int
    terminals: tuple[TerminalStats, ...]
    last_event_id: int
    undelivered: int
    body: Mapping[str, object] = field(repr=False)


class CallFailed(PosdError):
    """A call failed.

    `status` is the HTTP status, or None if there was no response; then the result is unknown. `code` is
    the server's error code, or `unreachable`, `tls_failed` or `unexpected_answer`. `message` is for
    people. `passing` says whether a retry may succeed, and `asked` is the number of seconds of
    `Retry-After`.
    """

    def __init__(
        self,
        status: int | None,
        code: str,
        message: str,
        *,
        passing: bool = False,
        asked: float | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        super().__init__(f"{message} ({code})" if status is None else f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.passing = passing
        self.asked = asked
        self.idempotency_key = idempotency_key


class PublishFailed(CallFailed):
    """An event was not published, or it is not known whether it was (`status` is None).

    To publish it later without the risk of a second event, pass the same `idempotency_key` again.
    """


@frozen
class HTTPResponse:
    """An HTTP response. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@frozen
class APICall(Generic[T]):
    """A request, and the function that reads its response. All attempts send the same bytes."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    _read: Callable[[Mapping[str, object]], T] = field(repr=False)
    idempotency_key: str | None = None

    def judge(self, answer: HTTPResponse, now: datetime) -> T:
        """Return the result of a successful response. Raises CallFailed for any other response."""
        body = _object(answer.body)
        if 200 <= answer.status < 300:
            try:
                return self._read(body)
            except (KeyError, TypeError):
                raise self._failure(answer.status, "unexpected_answer", _NOT_POSD) from None
        code, message = body.get("code"), body.get("error")
        raise self._failure(
            answer.status,
            code if isinstance(code, str) else "unexpected_answer",
            message if isinstance(message, str) else "the server gave no reason",
            passing=answer.status in _PASSING or code == _STILL_RUNNING,
            asked=retry_after(answer.headers.get("retry-after"), now),
        )

    def unanswered(self, *errors: BaseException | None) -> CallFailed:
        """Return the failure of a call without a response. It is permanent if a certificate failed."""
        for error in errors:
            if (reason := tls_failure(error)) is not None:
                return self._failure(None, "tls_failed", reason)
        reason = "; ".join(explain(error) for error in errors)
        return self._failure(None, "unreachable", reason, passing=True)

    def _failure(
        self,
        status: int | None,
        code: str,
        message: str,
        *,
        passing: bool = False,
        asked: float | None = None,
    ) -> CallFailed:
        key = self.idempotency_key
        kind = CallFailed if key is None else PublishFailed
        return kind(status, code, message, passing=passing, asked=asked, idempotency_key=key)


@frozen
class APIClient:
    """Builds the calls to one server with one key."""

    server: BaseUrl
    _key: str = field(repr=False)

    @classmethod
    def to(cls, url: str, key: str) -> APIClient:
        """Return a client for a server. Raises ValueError for an invalid URL or key."""
        key = strip_secret(key)  # it is often read from a file that ends with a newline
        if not _is_visible_ascii(key):
            raise ValueError("the key must be visible ASCII")
        return cls(BaseUrl.parse(url, "https", "http"), key)

    def announcement(
        self, tenant: str, kind: str, subject: object, idempotency_key: str | None
    ) -> APICall[PublishedEvent] | None:
        """Return the call that publishes a platform's object, or None for an order that is not online."""
        data = event_data(kind, subject)
        if kind in ("new_order", "order_updated") and is_offline(data):
            return None
        return self.publication(tenant, kind, data, idempotency_key)

    def publication(
        self,
        tenant: str,
        kind: str,
        data: Mapping[str, object],
        idempotency_key: str | None,
    ) -> APICall[PublishedEvent]:
        """Return the call that publishes data as it is.

        Raises TypeError or ValueError for values without a form in JSON.
        """
        idempotency_key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
        if not _is_visible_ascii(idempotency_key) or len(idempotency_key) > _MAX_KEY_LENGTH:
            raise ValueError(
                f"an idempotency key is 1 to {_MAX_KEY_LENGTH} visible ASCII characters"
            )
        return APICall(
            "POST",
            self.server.path("api", tenant, "events"),
            {
                "X-API-Key": self._key,
                "Content-Type": "application/json",
                "Idempotency-Key": idempotency_key,
            },
            encode({"type": kind, "data": plain_members(data)}),
            _publication,
            idempotency_key,
        )

    def stats(self, tenant: str) -> APICall[ConnectionStats]:
        """Return the call that gets the connected tills of a tenant."""
        path = self.server.path("api", tenant, "pos-status")
        return APICall("GET", path, {"X-API-Key": self._key}, b"", _stats)


@define
class RetryPolicy:
    """The number of attempts and the total time of a call. `now` is in seconds of a monotonic clock."""

    _deadline: float
    _random: Random
    _failures: int = 0

    @classmethod
    def within(cls, seconds: float, now: float, random: Random) -> RetryPolicy:
        return cls(now + seconds, random)

    def timeout(self, now: float) -> float:
        """Return the timeout of the next attempt, in seconds."""
        return max(0.001, min(ATTEMPT_TIMEOUT, self._deadline - now))

    def pause(self, failure: CallFailed, now: float) -> float:
        """Return the seconds to wait before the next attempt, or raise `failure` if there is none.

        There is no further attempt after a permanent failure, after the last attempt, or if it would
        begin after the deadline.
        """
        self._failures += 1
        pause = _BACKOFF.pause(self._failures, self._random)
        if failure.asked is not None:
            pause = max(pause, failure.asked * (1 + self._random() / 4))
        if not failure.passing or self._failures >= ATTEMPTS or now + pause >= self._deadline:
            raise failure
        return pause


def wall_clock() -> datetime:
    """Return the current time, for a `Retry-After` with a date."""
    return datetime.now(UTC)


def _is_visible_ascii(key: str) -> bool:
    return bool(key) and all("!" <= character <= "~" for character in key)


def _object(body: bytes) -> Mapping[str, object]:
    """Return a JSON object, or an empty one if the body is anything else, such as a proxy's page."""
    try:
        value = decode(body)
    except InvalidMessage:
        return {}
    return value if isinstance(value, dict) else {}


def _publication(body: Mapping[str, object]) -> PublishedEvent:
    position, warnings = body["id"], body.get("warnings", [])
    if not isinstance(warnings, list):
        raise TypeError("not a list")
    return PublishedEvent(
        None if position is None else _count(position),
        _count(body["connections"]),
        warnings=tuple(_warning(_mapping(each)) for each in warnings),
    )


def _warning(given: Mapping[str, object]) -> PublishWarning:
    return PublishWarning(str(given["member"]), str(given["code"]), str(given["message"]))


def _stats(body: Mapping[str, object]) -> ConnectionStats:
    sockets = _mapping(body["websocket"])
    terminals = sockets["terminals"]
    if not isinstance(terminals, list):
        raise TypeError("not a list")
    return ConnectionStats(
        active=_count(sockets["active"]),
        terminals=tuple(_terminal(_mapping(terminal)) for terminal in terminals),
        last_event_id=_count(body["lastEventId"]),
        undelivered=_count(body["undelivered"]),
        body=body,
    )


def _terminal(terminal: Mapping[str, object]) -> TerminalStats:
    device_id, behind = terminal["deviceId"], terminal.get("behind")
    return TerminalStats(
        None if device_id is None else str(device_id), None if behind is None else _count(behind)
    )


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a count")
    return value
