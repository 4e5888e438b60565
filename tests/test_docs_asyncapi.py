"""Compare docs/asyncapi.yaml with the code: it is valid AsyncAPI, and describes every message."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast
from uuid import uuid4

import yaml
from twisted.trial.unittest import SynchronousTestCase

import posd
from posd.errors import InvalidMessage
from posd.events import normalise
from posd.protocol import messages
from posd.protocol.jsontext import decode, encode
from posd.values import SLUG, KeyKind, Resync
from posd.web.openapi.event_schemas import components, name_of
from tests import documents
from tests.description_case import Shape, decoded
from tests.documents import words_in_code
from tests.test_docs_protocol import closings
from tests.test_docs_tills import produced

with warnings.catch_warnings():
    # pydantic warns of the field `schema` in two models, which the standard requires.
    warnings.simplefilter("ignore", UserWarning)
    from asyncapi3.models import AsyncAPI3

PAGE = "docs/asyncapi.yaml"
_TILL = {
    "tillPing": messages.PingMessage,
    "tillPong": messages.PongMessage,
    "ack": messages.AckMessage,
    "nack": messages.NackMessage,
    "print": messages.PrintMessage,
    "other": messages.OtherMessage,
}


@cache
def page() -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load(documents.text(PAGE)))


def channel() -> dict[str, Any]:
    return cast("dict[str, Any]", page()["channels"]["till"])


def names(action: str) -> set[str]:
    """Return the names of the messages that posd sends or receives."""
    found = set()
    for operation in page()["operations"].values():
        used = operation["messages"] if operation["action"] == action else []
        if action == "send":
            used = [*used, *operation.get("reply", {}).get("messages", [])]
        found |= {each["$ref"].rpartition("/")[2] for each in used}
    return found


def payload(name: str) -> Shape:
    return Shape(page()["components"]["messages"][name]["payload"], page())


def examples(name: str) -> list[dict[str, Any]]:
    shown = page()["components"]["messages"][name]["examples"]
    return [example["payload"] for example in shown]


class DocumentTests(SynchronousTestCase):
    """The form of the document."""

    def test_it_is_asyncapi_3(self) -> None:
        AsyncAPI3.model_validate(page())

    def test_every_reference_leads_somewhere(self) -> None:
        found = [*references(page())]
        self.assertGreater(len(found), 30)
        for reference in found:
            place: Any = page()
            for part in reference.removeprefix("#/").split("/"):
                self.assertIn(part, place, reference)
                place = place[part]

    def test_every_message_is_sent_or_received(self) -> None:
        self.assertEqual(names("send") | names("receive"), {*page()["components"]["messages"]})
        self.assertEqual({*channel()["messages"]}, {*page()["components"]["messages"]})

    def test_the_version_is_that_of_posd(self) -> None:
        self.assertEqual(page()["info"]["version"], posd.__version__)


class EventTests(SynchronousTestCase):
    """The events that posd sends to tills."""

    def test_the_data_of_each_known_type_is_what_its_table_makes(self) -> None:
        made = components()
        shown = page()["components"]["schemas"]
        told = {"Item", "Addon", *map(name_of, normalise.TABLES)}
        self.assertEqual({*shown}, {"Envelope", *told})
        for name in told:
            self.assertEqual(shown[name], made[name])

    def test_each_known_type_is_a_message_with_its_data_and_what_is_repeated_beside(self) -> None:
        for kind in normalise.TABLES:
            envelope, own = payload(kind).schema["allOf"]
            properties = own["properties"]
            with self.subTest(type=kind):
                self.assertEqual(envelope, {"$ref": "#/components/schemas/Envelope"})
                self.assertEqual(properties["type"], {"const": kind})
                self.assertEqual(
                    properties["data"], {"$ref": f"#/components/schemas/{name_of(kind)}"}
                )
                extra_members = properties.keys() - {"type", "data"}
                self.assertEqual(extra_members, {*normalise.REPEATED.get(kind, {})})

    def test_a_custom_event_has_none_of_the_known_types(self) -> None:
        self.assertEqual(names("send"), {*normalise.TABLES, "connected", "event", "pong", "error"})
        other = payload("event").schema["allOf"][1]["properties"]["type"]
        self.assertEqual({*other["not"]["enum"]}, {*normalise.TABLES})


class ExampleTests(SynchronousTestCase):
    """The examples fit their schemas, and posd writes or reads them."""

    def test_every_message_has_an_example_that_fits(self) -> None:
        for name in page()["components"]["messages"]:
            with self.subTest(message=name):
                self.assertNotEqual(examples(name), [])
                for example in examples(name):
                    self.assertEqual(payload(name).objections(example), [])

    def test_posd_writes_the_messages_of_posd(self) -> None:
        for name in names("send"):
            for example in examples(name):
                with self.subTest(message=name):
                    self.assertEqual(decoded(decode(produced(example))), example)

    def test_posd_parses_the_messages_of_a_till(self) -> None:
        self.assertEqual(names("receive"), {*_TILL})
        for name, kind in _TILL.items():
            for example in examples(name):
                self.assertIsInstance(messages.parse(encode(example)), kind)

    def test_posd_refuses_messages_that_do_not_fit(self) -> None:
        for name, mistake in (
            ("ack", {"type": "ack"}),
            ("ack", {"type": "ack", "id": "7"}),
            ("ack", {"type": "ack", "id": -1}),
            ("nack", {"type": "nack", "id": 7, "reason": 5}),
            ("print", {"type": "print", "orderId": "1", "status": "lost"}),
            ("print", {"type": "print", "status": "printed"}),
            ("other", {"type": ""}),
            ("tillPing", {"type": "ping", "id": []}),
        ):
            with self.subTest(mistake=mistake):
                self.assertFalse(payload(name).fits(mistake))
                with self.assertRaises(InvalidMessage):
                    messages.parse(encode(mistake))

    def test_posd_parses_other_spellings_that_fit(self) -> None:
        for name, message in (
            ("print", {"type": "print", "order_id": 7, "status": "printed"}),
            ("nack", {"type": "nack", "id": 0, "reason": None}),
            ("tillPing", {"type": "ping", "id": None, "timestamp": 1.5}),
        ):
            self.assertEqual(payload(name).objections(message), [])
            messages.parse(encode(message))

    def test_every_form_of_connected_fits(self) -> None:
        now = datetime.now(UTC)
        for resync in (None, *Resync):
            written = messages.connected_text(
                greeting="Hello",
                slug="kitchen",
                connection_id=str(uuid4()),
                device_id=None,
                stream_id=uuid4(),
                last_event_id=7,
                resumed_from=None if resync else 3,
                resync=resync,
                heartbeat=0.5,
                now=now,
            )
            self.assertEqual(payload("connected").objections(decoded(decode(written))), [])

    def test_every_form_of_pong_fits(self) -> None:
        for ping in (
            messages.PingMessage(),
            messages.PingMessage("a"),
            messages.PingMessage(1, "b"),
        ):
            written = messages.pong_text(ping, datetime.now(UTC))
            self.assertEqual(payload("pong").objections(decoded(decode(written))), [])


class AroundTests(SynchronousTestCase):
    """Refusals, errors and close codes."""

    def test_it_has_every_close_code(self) -> None:
        shown = {(each["code"], each["reason"]) for each in channel()["x-closings"]}
        self.assertEqual(shown, {(each.code, each.reason) for each in closings()})

    def test_it_has_every_refusal_with_its_status(self) -> None:
        rows = [
            t
            for t in documents.tables("docs/protocol.md")
            if t.section == "WebSocket: opening handshake"
        ]
        told = {row[0]: words_in_code(row[1]) for row in rows[-1].rows}
        shown = {status: {*codes} for status, codes in channel()["x-refusals"].items()}
        self.assertEqual(shown, told)

    def test_it_has_every_error_of_an_open_connection(self) -> None:
        text = documents.text("docs/protocol.md")
        section = text.partition("### Errors on an open connection\n")[2].partition("\n## ")[0]
        shown = payload("error").schema["properties"]["code"]["enum"]
        self.assertEqual({*shown}, words_in_code(section))

    def test_it_names_the_kinds_of_keys(self) -> None:
        kinds = {kind.value for kind in KeyKind}
        self.assertEqual(words_in_code(channel()["description"]) & kinds, {"tenant", "device"})

    def test_its_address_names_a_tenant(self) -> None:
        self.assertEqual(re.findall(r"{(\w+)}", channel()["address"]), [*channel()["parameters"]])
        for example in channel()["parameters"]["tenant"]["examples"]:
            self.assertIsNotNone(SLUG.fullmatch(example))


def references(value: object) -> Iterator[str]:
    """Yield every reference in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for member in value.values():
            yield from references(member)
    elif isinstance(value, list):
        for member in value:
            yield from references(member)
