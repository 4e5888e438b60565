"""What posd and a till say to each other over a WebSocket: bytes to values, values to bytes.

Pure: no sockets and no clock. The JSON itself is `jsontext`, the frames are `frames`; both are
offered here too, for those who need the whole codec.
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
"""What a ping may carry and gets back."""

_LARGEST_SEQ = 2**63 - 1
"""The largest `bigint` of PostgreSQL."""

_LONGEST_REASON = 500
"""Characters of a reason that are kept; it is for an operator's screen."""

_LONGEST_TYPE, _LONGEST_ORDER_ID = 100, 255
"""The longest `type` and `orderId` of a till's message."""


@frozen
class PingMessage:
    """The application's ping; its `id` and `timestamp`, where it has them, are echoed."""

    id: Echo = None
    timestamp: Echo = None


@frozen
class PongMessage:
    """The till answered; that it was heard is all there is to it."""


@frozen
class AckMessage:
    """The till has durably stored every event up to `id`."""

    id: Seq


@frozen
class NackMessage:
    """The till cannot process event `id`; `reason` is its own words, perhaps empty."""

    id: Seq
    reason: str = ""


@frozen
class PrintMessage:
    """How the printing of an order ended: `status` is `printed` or `failed`."""

    order_id: str
    status: str
    reason: str = ""


@frozen
class OtherMessage:
    """Any further message of a till, kept for the log: its type and its JSON, re-encoded."""

    type: str
    body: bytes


IncomingMessage: TypeAlias = (
    PingMessage | PongMessage | AckMessage | NackMessage | PrintMessage | OtherMessage
)


def parse(raw: bytes) -> IncomingMessage:
    """Read one text message of a till.

    Raises `InvalidMessage` when it is not a JSON object with a string `type`, is nested too
    deeply, or is of a known type but not as that type has to be. Members that posd does not know
    are ignored.
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
    """The message that carries an event: its JSON is put together, never read or written again.

    What stands beside `data` comes before it, so that a person who sees the beginning of a long
    message sees all of the envelope. Type and slug consist of characters that JSON need not escape.
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
    """The first message on a connection. `heartbeat` is in seconds."""
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
    """The answer to a ping.

    `echo` is what the ping carried: its `id` or its `timestamp` as it came, an object of both
    where it had both, absent where it had neither.
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
    """The last message on a road that has no Close frame."""
    return encode({"type": "pos_closing", "code": closing.code, "reason": closing.reason})


def error_text(code: str, message: str) -> bytes:
    """Tell a till that its message was not taken; the connection stays up."""
    return encode({"type": "error", "code": code, "message": message})


def _echo(message: Mapping[str, object], name: str) -> Echo:
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal | None):
        raise InvalidMessage(f"{name} of a ping must be a string or a number.")
    return value


def _seq(message: Mapping[str, object]) -> Seq:
    """The `id` of an ack or nack: an integer, which `1042.0` is and `"1042"` is not."""
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
    """`orderId`, which deployed tills also write as `order_id`; a number names the same order."""
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
