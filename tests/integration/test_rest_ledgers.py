"""Ledgers by REST under load and delay: every unit is spent once, and no call is executed too late."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Final

from attrs import define, field

from tests.integration.harness import Daemon, Reply
from tests.integration.ledger_case import LedgerCase
from tests.integration.wire_case import until

TILLS: Final = 40
CALLS: Final = 3
"""For each till, on the card and on the account."""
SEED: Final = 20261122

_TAKES: Final = """
    CREATE FUNCTION {schema}.take_time() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_catalog.pg_sleep(30); RETURN NEW; END';
    CREATE TRIGGER take_time BEFORE INSERT ON {schema}.pos_gift_card_transactions
        FOR EACH ROW EXECUTE FUNCTION {schema}.take_time()
"""


@define(eq=False)
class Counter:
    """A till that pays one unit at a time, loses some connections, and repeats each payment."""

    posd: Daemon
    place: str
    key: str
    number: int
    answers: dict[str, list[Reply]] = field(factory=dict)

    def pay(self) -> None:
        chance = random.Random(SEED + self.number)
        calls = [
            (path, n)
            for n in range(CALLS)
            for path in ("gift-cards/GC-1/deduct", "loyalty/07700900123/redeem")
        ]
        with closing(self.connection()) as connection:
            for path, n in calls:
                body = {"amount": 1} if "gift" in path else {"points": 10}
                once = f"{path.partition('/')[0]}-{self.number}-{n}"
                if chance.random() < 0.3:
                    self.leave(path, body, once)
                self.answers[once] = [self.ask(connection, path, body, once) for _ in range(2)]

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.posd.port, timeout=300, context=self.posd.tls()
        )

    def ask(
        self, connection: http.client.HTTPSConnection, path: str, body: Mapping[str, int], once: str
    ) -> Reply:
        """Return the answer. Repeat while posd is too busy."""
        while True:
            connection.request("POST", f"{self.place}/{path}", json.dumps(body), self.headers(once))
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 503:
                headers = {name.lower(): value for name, value in answer.getheaders()}
                return Reply(answer.status, json.loads(content), headers, content)

    def leave(self, path: str, body: Mapping[str, int], once: str) -> None:
        """Send a call and close the socket, so that its outcome is unknown."""
        connection = self.connection()
        connection.connect()
        connection.request("POST", f"{self.place}/{path}", json.dumps(body), self.headers(once))
        assert isinstance(connection.sock, socket.socket)
        connection.close()

    def headers(self, once: str) -> dict[str, str]:
        return {
            "X-API-Key": self.key,
            "Idempotency-Key": once,
            "Content-Type": "application/json",
        }


class CrowdTests(LedgerCase):
    def test_forty_tills_spend_exactly_what_there_is_and_each_key_once(self) -> None:
        self.sell("90")
        self.earn(900)
        tills = [
            Counter(
                self.posd,
                f"/api/{self.slug}",
                self.shop.key("device", self.slug, f"TILL_{number}"),
                number,
            )
            for number in range(TILLS)
        ]
        with ThreadPoolExecutor(TILLS) as threads:
            list(threads.map(Counter.pay, tills))
        for kind, table, refusal in (
            ("gift-cards", "pos_gift_card_transactions", "insufficient_balance"),
            ("loyalty", "pos_loyalty_transactions", "insufficient_points"),
        ):
            with self.subTest(ledger=kind):
                answers = {
                    once: replies
                    for till in tills
                    for once, replies in till.answers.items()
                    if once.startswith(kind)
                }
                self.assertEqual(len(answers), TILLS * CALLS)
                paid = self.check_answers(answers, refusal)
                self.check_ledger(table, paid)

    def check_answers(self, answers: Mapping[str, list[Reply]], refusal: str) -> list[str]:
        """Assert that both answers about a payment agree. Return the keys of successful payments."""
        paid = []
        for once, (first, second) in answers.items():
            self.assertEqual(first.status, second.status, once)
            if first.status == 200:
                self.assertEqual(first.json, second.json)
                self.assertEqual(second.headers.get("idempotent-replayed"), "true")
                paid.append(once)
            else:
                self.assertEqual((first.status, first.json["code"]), (400, refusal))
        self.assertEqual(len(paid), 90)
        return paid

    def check_ledger(self, table: str, paid: list[str]) -> None:
        """Assert that the ledger has exactly the answered payments, each once, and nothing is left."""
        rows = self.rows(
            f"SELECT idempotency_key, balance_after FROM {{schema}}.{table} WHERE seq > 1 ORDER BY seq"
        )
        self.assertEqual(sorted(key for key, _ in rows), sorted(paid))
        self.assertEqual(rows[-1][1], 0)


class SlowTests(LedgerCase):
    """Tills give up after some seconds, but the database may take longer."""

    def test_who_waits_for_a_cards_lock_is_told_in_time_and_may_come_again(self) -> None:
        self.sell()
        with self.held("SELECT FROM {schema}.gift_cards FOR UPDATE"):
            reply = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
            self.assert_refused(reply, 503, "busy")
            self.assertIn("retry-after", reply.headers)
        again = self.post("gift-cards/GC-1/deduct", {"amount": 5}, once="k")
        self.assertEqual((again.status, again.json["newBalance"]), (200, 45))
        self.assertNotIn("idempotent-replayed", again.headers)
        self.assertEqual(len(self.balances()), 2)

    def test_what_takes_too_long_or_waits_for_that_is_told_in_time_and_never_happens(self) -> None:
        for card in ("GC-1", "GC-2", "GC-3"):
            self.sell("50", card)
        self.rows(_TAKES)
        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(self.pay, "GC-1")]
            until(lambda: self.sleeping() == 1, "the first one is being made")
            # These calls wait for it, and have the rest of their time for themselves.
            calls += [threads.submit(self.pay, card) for card in ("GC-2", "GC-3")]
            replies = [call.result() for call in calls]
        for reply in replies:
            self.assert_refused(reply, 503, "busy")
        self.assertEqual(self.sleeping(), 0)
        self.rows("DROP TRIGGER take_time ON {schema}.pos_gift_card_transactions")
        self.assertEqual(self.pay("GC-3").status, 200)
        self.assertEqual(self.balances(), [(50, 50)] * 3 + [(-5, 45)])

    def pay(self, card: str) -> Reply:
        """Pay like a till that waits for eight seconds, plus a moment for a busy machine."""
        place = f"/api/{self.slug}/gift-cards/{card}/deduct"
        return self.posd.request("POST", place, {"amount": 5}, key=self.key, patience=9.0)

    def sleeping(self) -> int:
        return int(
            self.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'PgSleep'"
            )
        )

    @contextmanager
    def held(self, statement: str) -> Iterator[None]:
        """Hold a transaction of another session open."""
        with closing(self.shop.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(statement.format(schema=self.schema))
            yield
            cursor.execute("ROLLBACK")
