"""docs/protocol.md, compared with the code: members, codes and addresses."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import posd
from posd import (
    errors,
    values,
)
from posd.daemon import wiring
from posd.delivery import long_poll as polls
from posd.delivery import receive_queue as intake
from posd.delivery import session
from posd.events import addresses, normalise, orders
from posd.events import coercion as readings
from posd.events.fields import FieldTable as Members
from posd.events.warnings import WarningCollector
from posd.protocol import encodings as wire_format
from posd.security import client_credit as credit
from posd.security import connection_limits as limits
from posd.security import request_rates
from posd.values import CloseReason, KeyKind, Resync
from posd.web import sse as streaming
from posd.web import websocket as ws
from posd.web.api import publishing
from posd.web.http import bounded_request, channel
from posd.web.opened_protocol import MESSAGE_BYTES
from tests import documents
from tests.documents import words_in_code

PAGE = "docs/protocol.md"
_OTHER_PROGRAMS = ("broadcaster", "cli", "client", "testing")
_FORMS: Mapping[Callable[..., object], str] = {
    readings.text: "string",
    readings.label: "string",
    readings.identifier: "string",
    readings.enum_word: "string",
    addresses.address: "string",
    readings.amount: "number",
    readings.integer: "integer",
    normalise._int32: "integer",
    readings.point_in_time: "time",
    readings.appointment: "time",
    readings.deadline: "time",
    normalise._items: "array",
    normalise._addons: "array",
}


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Return the error codes that a module sends, in any form."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                yield code
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(code))):
                yield code
            case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                yield code
            case ast.Dict(keys=keys, values=given):
                for key, value in zip(keys, given, strict=True):
                    match key, value:
                        case ast.Constant(value="code"), ast.Constant(value=str(code)):
                            yield code
            case ast.Call(
                func=ast.Attribute(attr="_reject_message" | "_send_error" | "error_text"),
                args=[ast.Constant(value=str(code)), *_],
            ):
                yield code
            case ast.Call(
                func=ast.Name(id="error_body"), args=[_, ast.Constant(value=str(code)), _]
            ):
                yield code


def codes() -> set[str]:
    """Return the error codes of the daemon."""
    root = Path(posd.__file__).parent
    return {
        code
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in _OTHER_PROGRAMS
        for code in codes_in(ast.parse(path.read_text("utf-8")))
    }


class MemberTests(SynchronousTestCase):
    """The tables of messages to tills."""

    def check(
        self, shown: documents.Table, members: Members, least: Mapping[str, object], *also: str
    ) -> None:
        """Compare a table with events. `least` is an event with as few known values as possible."""
        known = [*also, *(member.name for member in members.members)]
        self.assertEqual(shown.column(), known)
        forms = {member.name: _FORMS[member.read] for member in members.members}
        for name, form, unknown in shown.rows:
            name = name.strip("`")
            with self.subTest(member=name):
                self.assertEqual(form, forms.get(name, "integer"))
                if name not in least:
                    self.assertEqual(unknown, "left out")
                else:
                    self.assertEqual(unknown, "null" if least[name] is None else "always known")

    def order(self, kind: str, **data: object) -> Mapping[str, object]:
        draft = normalise.draft(kind, {"orderId": "1", **data})
        change = orders.change(draft, None, datetime.now(UTC))
        assert change is not None
        return change.draft.data

    def test_new_order(self) -> None:
        both = normalise._ORDER.members
        first, rest = both[:-2], both[-2:]
        self.assertEqual([member.name for member in rest], ["previousStatus", "updatedAt"])
        self.check(
            documents.table(PAGE, "new_order"),
            normalise._ORDER._replace(members=first),
            self.order("new_order"),
        )
        self.check(
            documents.table(PAGE, "order_updated"),
            normalise._ORDER._replace(members=rest),
            self.order("order_updated"),
        )

    def test_an_update_of_an_unknown_order_does_not_know_when_it_was_made(self) -> None:
        self.assertIsNone(self.order("order_updated")["createdAt"])

    def test_items_and_addons(self) -> None:
        items, addons = (each for each in documents.tables(PAGE) if each.section == "items")
        (item,) = normalise._items([{}], WarningCollector())
        (addon,) = normalise._addons([{}], WarningCollector())
        self.check(items, normalise._ITEM, item, "id")
        self.check(addons, normalise._ADDON, addon)

    def test_the_other_types(self) -> None:
        for kind in normalise._TABLES.keys() - normalise.ORDER_TYPES:
            name = normalise._NAMING[kind][-1]
            least = normalise.draft(kind, {name: "1"}).data
            shown = documents.table(PAGE, kind)
            if kind == "loyalty_updated":
                # An event has one of these members at least. Each may be unknown.
                least = {**least, name: None}
            with self.subTest(type=kind):
                self.check(shown, normalise._TABLES[kind], least)

    def test_what_is_repeated_beside_the_data(self) -> None:
        for kind, names in normalise._REPEATED.items():
            (row,) = (r for r in documents.table(PAGE, "Events").rows if r[0] == f"`{kind}`")
            self.assertLessEqual(names.keys(), words_in_code(row[1]))


class CodeTests(SynchronousTestCase):
    """Error codes, close codes, and kinds of keys."""

    def test_every_code_that_the_daemon_gives_out_is_explained_and_no_other(self) -> None:
        self.assertEqual(
            documents.table(PAGE, "Error codes").column(), [*dict.fromkeys(self.listed())]
        )
        self.assertEqual({*self.listed()}, codes())

    def listed(self) -> list[str]:
        return documents.table(PAGE, "Error codes").column()

    def test_each_code_of_a_refusal_has_its_status(self) -> None:
        statuses = {row[0].strip("`"): row[1] for row in documents.table(PAGE, "Error codes").rows}
        for refusal in refusals():
            if "code" in vars(refusal):
                with self.subTest(code=refusal.code):
                    self.assertIn(str(refusal.status), statuses[refusal.code].split(", "))

    def test_every_answer_to_a_handshake_is_a_code_of_that_status(self) -> None:
        statuses = {row[0].strip("`"): row[1] for row in documents.table(PAGE, "Error codes").rows}
        for page, section in (
            (PAGE, "WebSocket: opening handshake"),
            ("docs/tills.md", "Refused connections"),
        ):
            shown = [t for t in documents.tables(page) if t.section == section][-1]
            for row in shown.rows:
                for code in words_in_code(row[1]):
                    self.assertEqual(statuses[code], row[0], code)

    def test_every_close_code_has_its_reasons(self) -> None:
        rows = documents.table(PAGE, "WebSocket: heartbeat and close codes").rows
        reasons = {int(code): reason for code, reason in rows}
        self.assertEqual({*reasons}, {closing.code for closing in closings()})
        for closing in closings():
            self.assertIn(closing.reason, reasons[closing.code])

    def test_every_kind_of_key_is_explained(self) -> None:
        self.assertEqual(
            {*documents.table(PAGE, "Authentication").column()}, {kind.value for kind in KeyKind}
        )

    def test_every_reason_for_a_resync_is_named(self) -> None:
        self.assertLessEqual(
            {reason.value for reason in Resync}, words_in_code(documents.text(PAGE))
        )


class NumberTests(SynchronousTestCase):
    """Numbers of the code on the page."""

    def test_they_are_those_of_the_code(self) -> None:
        page = " ".join((documents.text(PAGE) + documents.text("docs/rest.md")).split())
        for sentence in (
            f"takes nothing for {session._STALLED_SECONDS:g} seconds",
            f"registered, up to {limits.MOST_DEVICES} in a tenant",
            f"A message may have {MESSAGE_BYTES // 1024} KiB, in up to {ws._MOST_FRAGMENTS}",
            f"A body may have {bounded_request.BODY_BYTES // 1024 // 1024} MiB",
            f"must bring a request within {channel._REQUEST_SECONDS:g} seconds",
            f"closed after {channel.IDLE_SECONDS} idle seconds; where {wiring._MOST_HTTP_CHANNELS:,} conn",
            "A frame costs a quarter of a request",
            f"together {request_rates.SHARED_KEY_FACTOR} times",
            f"what {credit.BURST_SECONDS} seconds give at once",
            f"goes on for {intake._MOST_FRAMES_WHILE_PAUSED} frames more",
            f"with 1 to {publishing._MOST_EVENTS} of these",
            f"An answer has up to {polls._MOST_BYTES // 1024 // 1024} MiB of events",
            f"One call looks at up to {polls._MOST_EXAMINED} events",
            f"nothing else for {wire_format.SERVER_SENT.keepalive_seconds:g} seconds",
            f"{streaming._UNCONFIRMED_MILLISECONDS // 1000} seconds go by in which nothing was confirmed",
        ):
            self.assertTrue(sentence in page, sentence)
        self.assertEqual(request_rates.FRAME_COST, 0.25)
        self.assertEqual(session._MOST_INVALID_PER_MINUTE, 10)
        self.assertEqual(limits.ConnectionLimits(1, 1).per_device, 4)


def closings() -> list[CloseReason]:
    """Return all reasons for which posd may close a till's connection."""
    found = [*vars(values).values(), *vars(ws).values()]
    return [each for each in found if isinstance(each, CloseReason)]


def refusals(kind: type[errors.Refusal] = errors.Refusal) -> Iterator[type[errors.Refusal]]:
    """Return all loaded classes of refusals."""
    for each in kind.__subclasses__():
        yield each
        yield from refusals(each)
