"""The messages between posd and a till: parses incoming messages, and writes outgoing ones.

The functions do no I/O. The module also exports the JSON functions of `jsontext` and the frames of `frames`,
so that it is the whole codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias
from uuid import UUID

from attrs import frozen

from posd.errors import InvalidMessage
from posd.protocol.frames import close_frame, ping_frame, text_frame
from posd.protocol.json_literals import timestamp
from posd.protocol.jsontext import DEPTH, decode, encode
from posd.values import CloseReason, Event, Resync, Seq

__all__ = [
    "DEPTH",
    "AckMessage",
    "IncomingMessage",
    "NackMessage",
    "OtherMessage",
    "PingMessage",
    "PongMessage",
    "PrintMessage",
    "close_frame",
    "closing_text",
    "connected_text",
    "decode",
    "encode",
    "error_text",
    "event_text",
    "parse",
    "ping_frame",
    "pong_text",
    "text_frame",
    "timestamp",
]

Echo: TypeAlias = str | int | Decimal | None
"""A value of a ping that the pong repeats."""

_LARGEST_SEQ = 2**63 - 1
"""The largest `bigint` of PostgreSQL."""

_LONGEST_REASON = 500
"""The limit of characters of a reason. The rest is cut, since the reason is for an operator's screen."""

_LONGEST_TYPE, _LONGEST_ORDER_ID = 100, 255
"""The limits of characters of `type` and `orderId` in a till's message."""


@frozen
class PingMessage:
    """A ping of the application protocol. The pong repeats its `id` and `timestamp`, if it has them."""

    id: Echo = None
    timestamp: Echo = None


@frozen
class PongMessage:
    """The answer of a till to a ping. It has no content that posd uses."""


@frozen
class AckMessage:
    """The till has durably stored all events up to `id`."""

    id: Seq


@frozen
class NackMessage:
    """The till cannot process event `id`. `reason` is a text of the till, which may be empty."""

    id: Seq
    reason: str = ""


@frozen
class PrintMessage:
    """The result of printing an order. `status` is `printed` or `failed`."""

    order_id: str
    status: str
    reason: str = ""


@frozen
class OtherMessage:
    """Any other message of a till, which posd logs: its type and its JSON, encoded again."""

    type: str
    body: bytes


IncomingMessage: TypeAlias = (
    PingMessage | PongMessage | AckMessage | NackMessage | PrintMessage | OtherMessage
)


def parse(raw: bytes) -> IncomingMessage:
    """Parse a text message of a till.

    Raises `InvalidMessage` if the message is not a JSON object with a string `type`, is nested too deeply, or
    has an invalid member for its type. Unknown members are ignored.
    """
    message = decode(raw)
    if not isinstance(message, dict):
        raise InvalidMessage("A message must be a JSON object.")
    match message.get("type"):
        case "ping":
            return PingMessage(_echo(message, "id"), _echo(message, "timestamp"))
        case "pong":
            return PongMessage()
        case "ack":
            return AckMessage(_seq(message))
        case "nack":
            return NackMessage(_seq(message), _reason(message))
        case "print":
            return PrintMessage(_order_id(message), _print_status(message), _reason(message))
        case str(name):
            if not 1 <= len(name) <= _LONGEST_TYPE or not name.isprintable():
                raise InvalidMessage(f"type must be 1 to {_LONGEST_TYPE} printable characters.")
            return OtherMessage(name, encode(message))
        case _:
            raise InvalidMessage("A message must have a type, and it must be a string.")


def event_text(event: Event, slug: str, replay: bool = False) -> bytes:
    """Return the message for an event. The stored JSON is inserted without being decoded.

    The other members come before `data`, so that the beginning of a long message shows all of them. The type
    and the slug have only characters that JSON does not escape.
    """
    replay_member = ',"replay":true' if replay else ""
    head = (
        f'{{"type":"{event.type}","id":{event.seq},"tenant":"{slug}"'
        f',"timestamp":"{timestamp(event.created_at)}"{replay_member},'
    ).encode()
    if len(event.extra_members) > 2:
        head += b"%b," % event.extra_members[1:-1]
    return b"".join((head, b'"data":', event.data, b"}"))


def connected_text(
    *,
    greeting: str,
    slug: str,
    connection_id: str,
    device_id: str | None,
    stream_id: UUID,
    last_event_id: Seq,
    resumed_from: Seq | None,
    resync: Resync | None,
    heartbeat: float,
    now: datetime,
) -> bytes:
    """Return the first message on a connection. `heartbeat` is in seconds."""
    return encode(
        {
            "type": "connected",
            "tenant": slug,
            "message": greeting,
            "timestamp": timestamp(now),
            "connectionId": connection_id,
            "deviceId": device_id,
            "streamId": str(stream_id),
            "lastEventId": last_event_id,
            "resumedFrom": resumed_from,
            "resync": None if resync is None else resync.value,
            "heartbeatSeconds": int(heartbeat) if heartbeat == int(heartbeat) else heartbeat,
        }
    )


def pong_text(ping: PingMessage, now: datetime) -> bytes:
    """Return the answer to a ping.

    `echo` is the ping's `id` or `timestamp`, an object of both if the ping has both, and absent if the ping
    has neither.
    """
    pong: dict[str, object] = {"type": "pong", "timestamp": timestamp(now)}
    match ping:
        case PingMessage(None, None):
            pass
        case PingMessage(id, None):
            pong["echo"] = id
        case PingMessage(None, sent):
            pong["echo"] = sent
        case PingMessage(id, sent):
            pong["echo"] = {"id": id, "timestamp": sent}
    return encode(pong)


def closing_text(closing: CloseReason) -> bytes:
    """Return the last message on an event stream, which has no close frame."""
    return encode({"type": "pos_closing", "code": closing.code, "reason": closing.reason})


def error_text(code: str, message: str) -> bytes:
    """Return the message that reports an error of a till's message. The connection stays open."""
    return encode({"type": "error", "code": code, "message": message})


def _echo(message: Mapping[str, object], name: str) -> Echo:
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal | None):
        raise InvalidMessage(f"{name} of a ping must be a string or a number.")
    return value


def _seq(message: Mapping[str, object]) -> Seq:
    """Return the `id` of an ack or nack, which must be an integer: `1042.0` is valid, and `"1042"` is not."""
    value = message.get("id")
    if isinstance(value, Decimal) and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_SEQ:
        raise InvalidMessage("id must be the position of an event: an integer of 0 or more.")
    return value


def _reason(message: Mapping[str, object]) -> str:
    reason = message.get("reason")
    if not isinstance(reason, str | None):
        raise InvalidMessage("reason must be a string.")
    return (reason or "")[:_LONGEST_REASON]


def _order_id(message: Mapping[str, object]) -> str:
    """Return `orderId`, or `order_id` as some deployed tills write it. A number becomes a string."""
    given = [message[name] for name in ("orderId", "order_id") if message.get(name) is not None]
    names = {
        str(value).strip()
        for value in given
        if isinstance(value, str | int) and not isinstance(value, bool)
    }
    if len(names) != 1 or not 1 <= len(order_id := names.pop()) <= _LONGEST_ORDER_ID:
        raise InvalidMessage(f"orderId must name one order in 1 to {_LONGEST_ORDER_ID} characters.")
    return order_id


def _print_status(message: Mapping[str, object]) -> str:
    status = message.get("status")
    if not isinstance(status, str) or status not in ("printed", "failed"):
        raise InvalidMessage('status of a print must be "printed" or "failed".')
    return status
