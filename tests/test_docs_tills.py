"""Compare docs/tills.md with the code: posd writes or reads every message of the page."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from posd import values
from posd.client.outcome import NextStep, Outcome
from posd.delivery import session
from posd.errors import InvalidMessage
from posd.events import normalise, orders
from posd.protocol import messages
from posd.protocol.jsontext import decode, encode
from posd.values import CloseReason, Event, Resync, StoredOrder
from posd.web import websocket as ws
from tests import documents, strict_till
from tests.documents import Block

PAGE = "docs/tills.md"
_ENVELOPE = ("type", "id", "tenant", "timestamp", "replay", "data")
_STEPS = {
    "**At once**": NextStep.AT_ONCE,
    "**Back off**": NextStep.RETRY,
    "**Wait**": NextStep.WAIT,
    "**Wait.**": NextStep.WAIT,
    "**Stop.**": NextStep.STOP,
}


def messages_of(who: str) -> list[Block]:
    """Return the JSON messages of the page that one side sends."""
    return [block for block in documents.blocks(PAGE) if block.of("json", who)]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def produced(message: dict[str, Any]) -> bytes:
    """Return the bytes that posd writes for this message."""
    match message["type"]:
        case "connected":
            return messages.connected_text(
                greeting="Connected to POS WebSocket",
                slug=message["tenant"],
                connection_id=str(UUID(message["connectionId"])),
                device_id=message["deviceId"],
                stream_id=UUID(message["streamId"]),
                last_event_id=message["lastEventId"],
                resumed_from=message["resumedFrom"],
                resync=None if message["resync"] is None else Resync(message["resync"]),
                heartbeat=float(message["heartbeatSeconds"]),
                now=moment(message["timestamp"]),
            )
        case "pong":
            return messages.pong_text(
                messages.PingMessage(id=message["echo"]), moment(message["timestamp"])
            )
        case "error":
            return messages.error_text(message["code"], message["message"])
    return published(message)


def published(message: dict[str, Any]) -> bytes:
    """Return the event that posd makes when the data of this one is published."""
    extra_members = {name: value for name, value in message.items() if name not in _ENVELOPE}
    draft = normalise.draft(message["type"], message["data"], extra_members)
    if draft.type in normalise.ORDER_TYPES:
        change = orders.change(draft, before(message["data"]), datetime.now(UTC))
        assert change is not None
        draft = change.draft
    event = Event(
        message["id"],
        draft.type,
        encode(draft.data),
        moment(message["timestamp"]),
        encode(draft.extra_members),
    )
    return messages.event_text(event, message["tenant"], message.get("replay", False))


def before(order: dict[str, Any]) -> StoredOrder | None:
    """Return the order that posd knew before this event; None for a new order."""
    if "previousStatus" not in order:
        return None
    snapshot = {**order, "status": order["previousStatus"]}
    return StoredOrder(
        order["orderId"], snapshot, order["previousStatus"], int(order["version"]) - 1
    )


class MessageTests(SynchronousTestCase):
    """The messages in the examples."""

    def test_posd_writes_the_messages_of_posd(self) -> None:
        shown = messages_of("posd")
        self.assertNotEqual(shown, [])
        for block in shown:
            with self.subTest(line=block.line):
                message: Any = decode(block.text)
                self.assertEqual(encode(message).decode(), produced(message).decode())

    def test_the_strictest_till_reads_every_event(self) -> None:
        events = [block for block in messages_of("posd") if '"data"' in block.text]
        self.assertNotEqual(events, [])
        for block in events:
            with self.subTest(line=block.line):
                strict_till.read(encode(decode(block.text)))

    def test_every_known_type_of_event_has_an_example(self) -> None:
        shown: set[Any] = {decode(block.text)["type"] for block in messages_of("posd")}  # type: ignore[index]
        self.assertEqual(normalise._TABLES.keys() - shown, set())

    def test_posd_parses_every_type_of_message_of_a_till(self) -> None:
        kinds = {type(messages.parse(block.text.encode())) for block in messages_of("till")}
        self.assertEqual(
            kinds,
            {
                *(
                    messages.PingMessage,
                    messages.PongMessage,
                    messages.AckMessage,
                    messages.NackMessage,
                    messages.PrintMessage,
                ),
                messages.OtherMessage,
            },
        )

    def test_an_invalid_message_gets_the_answer_below_it(self) -> None:
        everything = documents.blocks(PAGE)
        mistakes = [index for index, block in enumerate(everything) if "mistake" in block.words]
        self.assertNotEqual(mistakes, [])
        for index in mistakes:
            with self.assertRaises(InvalidMessage) as raised:
                messages.parse(everything[index].text.encode())
            answer: Any = decode(everything[index + 1].text)
            self.assertEqual(answer["message"], str(raised.exception))


class TableTests(SynchronousTestCase):
    """The tables of the page."""

    def test_every_member_of_connected_is_explained(self) -> None:
        greeting: Any = decode(messages_of("posd")[0].text)
        explained = documents.table(PAGE, "The connected message").column()
        self.assertEqual(
            explained, [n for n in greeting if n not in ("type", "tenant", "message", "timestamp")]
        )

    def test_every_reason_for_a_resync_is_explained(self) -> None:
        explained = documents.table(PAGE, "Resync").column()
        self.assertEqual({*explained}, {reason.value for reason in Resync})

    def test_every_error_of_a_session_is_explained(self) -> None:
        rows = documents.table(PAGE, "Errors on an open connection").rows
        explained = {code for row in rows for code in documents.words_in_code(row[0])}
        self.assertEqual(explained, error_codes_of_sessions() | {"unavailable", "busy"})

    def test_every_close_code_of_posd_is_in_the_table(self) -> None:
        found = [*vars(values).values(), *vars(ws).values()]
        used = {each.code for each in found if isinstance(each, CloseReason)}
        self.assertEqual(used - set(self.close_codes()), set())

    def test_the_client_of_posd_follows_the_table_of_close_codes(self) -> None:
        for code, step in self.close_codes().items():
            with self.subTest(code=code):
                self.assertIs(Outcome.closed(code, None).next_step, step)

    def test_the_client_of_posd_follows_the_table_of_refusals(self) -> None:
        for row in documents.table(PAGE, "Refused connections").rows:
            with self.subTest(status=row[0]):
                outcome = Outcome.refused(int(row[0]), {}, b"", datetime.now(UTC))
                self.assertIs(outcome.next_step, first_step(row[2]))

    def close_codes(self) -> dict[int | None, NextStep]:
        return {
            None if code == "none" else int(code): first_step(row[2])
            for row in documents.table(PAGE, "Close codes").rows
            for code in row[0].split(", ")
        }


def first_step(advice: str) -> NextStep:
    (step,) = (step for words, step in _STEPS.items() if advice.startswith(words))
    return step


def error_codes_of_sessions() -> set[str]:
    """Return the codes of the errors that `posd.delivery.session` sends."""
    tree = ast.parse(Path(session.__file__).read_text("utf-8"))
    return {
        str(node.args[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("_reject_message", "_send_error")
        and isinstance(node.args[0], ast.Constant)
    }
