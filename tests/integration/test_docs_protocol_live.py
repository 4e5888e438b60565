"""The addresses of docs/protocol.md on a running posd: those that exist, and those that do not yet."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests import documents
from tests.documents import words_in_code
from tests.integration.harness import Shop

PAGE = "docs/protocol.md"
CALLS = "docs/rest.md"


class AddressTests(SynchronousTestCase):
    """A posd that is asked for all addresses of the page."""

    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.posd = self.shop.start()

    def test_every_address_of_the_table_answers(self) -> None:
        for row in documents.table(PAGE, "HTTP").rows:
            answer = self.posd.request(row[1], filled(row[0].strip("`")), {})
            with self.subTest(address=row[0]):
                self.assertNotIn(answer.status, (404, 405, 500))

    def test_who_may_do_what_is_as_the_table_says(self) -> None:
        for row in documents.table(PAGE, "HTTP").rows:
            for kind in ("tenant", "platform", "admin"):
                key = self.shop.key(kind, None if kind == "admin" else "kitchen")
                body = {"tenant": "kitchen", "type": "notice", "event": {}, "data": {}}
                # An answer without an end is refused, after authentication.
                answer = self.posd.request(
                    row[1],
                    filled(row[0].strip("`")),
                    body,
                    key=key,
                    headers={"Last-Event-ID": "none"},
                )
                may = kind in re.findall(r"\w+", row[2]) or row[2].startswith("any")
                with self.subTest(address=row[0], kind=kind):
                    self.assertEqual(answer.status not in (401, 403), may)

    def test_pos_status_has_the_members_of_the_page(self) -> None:
        self.shop.key("device", device="POS_1")
        notice = {"type": "notice", "data": {}}
        self.posd.request("POST", "/api/kitchen/events", notice, key=self.shop.key("platform"))
        status = self.posd.request("GET", "/api/kitchen/pos-status", key=self.shop.key()).json
        rows = documents.table(CALLS, "GET /api/{tenant}/pos-status").rows
        self.assertEqual([row[0].strip("`") for row in rows], list(status))
        for row in rows:
            value = status[row[0].strip("`")]
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, dict):
                self.assertEqual(words_in_code(row[1]), {*first}, row[0])
        (terminal,) = status["websocket"]["terminals"]
        section = documents.text(CALLS).partition("Each of `terminals`")[2].partition(". ")[0]
        self.assertEqual(words_in_code(section), {*terminal})

    def test_what_is_not_there_yet_is_not_there_yet(self) -> None:
        planned = documents.text(PAGE).partition("## Not available yet")[2]
        words = sorted(words_in_code(planned))
        self.assertGreater(len(words), 0)
        for word in words:
            method, address = word.split()
            answer = self.posd.request(method, filled(address), key=self.shop.key("tenant"))
            with self.subTest(address=word):
                self.assertIn(answer.status, (404, 405), "it is there now: say so in the documents")


def filled(address: str) -> str:
    """Return an address with a value for each {name}."""
    return re.sub(r"\{.*?\}", "kitchen", address)
