"""Parse the messages that a server sends to a till. This module does no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from attrs import frozen

from posd.errors import InvalidMessage
from posd.protocol.jsontext import decode_own
from posd.values import Resync, Seq


@frozen
class Connected:
    """The `connected` message, the first of a connection.

    `last_event_id` is the head of the stream. `resumed_from` is the position that the replay starts
    after, or None without a replay. `resync` is the reason if a position could not be used. `device_id`
    is None for a terminal without a device id; such a terminal has no cursor. `heartbeat` is in seconds.
    """

    stream_id: UUID
    last_event_id: Seq
    resumed_from: Seq | None
    resync: Resync | None
    device_id: str | None
    heartbeat: float

    @property
    def begins_after(self) -> Seq:
        """The position before the first event of this connection."""
        return self.last_event_id if self.resumed_from is None else self.resumed_from


@frozen
class ReceivedEvent:
    """One event of the stream.

    Numbers in `data` are int or Decimal, never float. `message` is the whole message, which may have
    other members beside `data`. `text` is the message as it was received.
    """

    id: Seq
    type: str
    timestamp: datetime
    data: Mapping[str, object]
    replay: bool
    message: Mapping[str, object]
    text: bytes


@frozen
class ServerError:
    """An `error` message: the server could not use a message of this till. The connection stays open."""

    code: str
    message: str


Received = Connected | ReceivedEvent | ServerError | None


def parse_message(text: bytes) -> Received:
    """Parse a message. Return None for `ping` and `pong`, which need no action.

    Every other type is an event, because platforms may publish types of their own. Raises
    InvalidMessage for a message that violates the protocol.
    """
    message = decode_own(text)
    if not isinstance(message, dict):
        raise InvalidMessage("a message must be an object")
    match message.get("type"):
        case "connected":
            return _connected(message)
        case "ping" | "pong":
            return None
        case "error":
            return ServerError(str(message.get("code")), str(message.get("message")))
        case str() as kind:
            return _event(kind, message, text)
    raise InvalidMessage("a message must have a type")


def _connected(message: Mapping[str, object]) -> Connected:
    resumed_from = message.get("resumedFrom")
    resync = message.get("resync")
    device_id = message.get("deviceId")
    try:
        heartbeat = float(str(message["heartbeatSeconds"]))
        if heartbeat <= 0:
            raise ValueError("the heartbeat must be positive")
        return Connected(
            stream_id=UUID(str(message["streamId"])),
            last_event_id=_seq(message, "lastEventId"),
            resumed_from=None if resumed_from is None else _seq(message, "resumedFrom"),
            resync=None if resync is None else Resync(resync),
            device_id=None if device_id is None else str(device_id),
            heartbeat=heartbeat,
        )
    except (KeyError, ValueError) as error:
        raise InvalidMessage("the `connected` message is incomplete") from error


def _event(kind: str, message: Mapping[str, object], text: bytes) -> ReceivedEvent:
    data, timestamp = message.get("data"), message.get("timestamp")
    if not isinstance(data, dict) or not isinstance(timestamp, str):
        raise InvalidMessage(f"an event of type {kind} must have data and a timestamp")
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError as error:
        raise InvalidMessage("the timestamp of an event must be RFC 3339") from error
    replay = message.get("replay") is True
    return ReceivedEvent(_seq(message, "id"), kind, moment, data, replay, message, text)


def _seq(message: Mapping[str, object], name: str) -> Seq:
    """Return a member that must be a position: not a fraction, not `true`, not negative."""
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidMessage(f"{name} must be a position in the stream")
    return value
