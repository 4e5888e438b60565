"""A deed of a shop's day as a REST call, and the check of its answer."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from decimal import Decimal
from select import select
from typing import Any, Final
from urllib.parse import quote

from attrs import define, frozen

from posd.events.fields import snake
from posd.protocol import jsontext
from tests.integration.harness import Daemon
from tests.shop_books import CARDS, Outcome
from tests.shop_deeds import (
    DATE,
    Changed,
    Deed,
    Happening,
    Malformed,
    Moved,
    Placed,
    Reported,
    Road,
    Said,
    Sold,
    TakenBack,
)

_STATUSES: Final = {
    **dict.fromkeys(("insufficient_balance", "insufficient_points", "card_blocked"), 400),
    **dict.fromkeys(("unknown_card", "unknown_customer", "unknown_order"), 404),
    **dict.fromkeys(("already_earned", "reversed", "card_exists", "order_exists"), 409),
    **dict.fromkeys(("version_mismatch", "invalid_transition"), 409),
}
"""The HTTP status of each refusal."""


@frozen
class Answer:
    """posd's answer to a call. Numbers are as they were written."""

    status: int
    json: Any
    is_replayed: bool


@define(eq=False)
class Line:
    """A persistent connection of an actor. `secret` is a key."""

    posd: Daemon
    slug: str
    secret: str
    _connection: http.client.HTTPSConnection | None = None

    def call(
        self, method: str, path: str, body: object = None, *, once: str | None = None
    ) -> Answer:
        """Call, and repeat while an earlier call with this key is being processed."""
        while True:
            answer = self._ask(method, path, body, once)
            if answer.json.get("code") != "still_running":
                return answer

    def lose(self, method: str, path: str, body: object, once: str) -> None:
        """Call, and disconnect before the answer."""
        self._send(method, path, body, once)
        self.hang_up()

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: object, once: str | None) -> Answer:
        reply = self._send(method, path, body, once).getresponse()
        said = json.loads(reply.read(), parse_float=Decimal)
        return Answer(reply.status, said, reply.getheader("Idempotent-Replayed") == "true")

    def _send(
        self, method: str, path: str, body: object, once: str | None
    ) -> http.client.HTTPSConnection:
        place = path if path.startswith("/") else f"/api/{self.slug}/{path}"
        headers = {"X-API-Key": self.secret, "Content-Type": "application/json"}
        if once is not None:
            headers["Idempotency-Key"] = once
        sent = body if isinstance(body, bytes) or body is None else jsontext.encode(body)
        if self._connection is not None and _is_over(self._connection):
            self.hang_up()
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                "localhost", self.posd.port, timeout=300, context=self.posd.tls()
            )
        self._connection.request(method, place, sent, headers)
        return self._connection


def _is_over(connection: http.client.HTTPSConnection) -> bool:
    """Return whether posd has closed the connection, as it does when it is idle."""
    return connection.sock is not None and bool(select([connection.sock], [], [], 0)[0])


def request(slug: str, deed: Deed) -> tuple[str, str, object, str | None]:
    """Return a deed as a call: method, path, body, Idempotency-Key."""
    if isinstance(deed, Placed):
        order = {"orderId": deed.order_id, **deed.content}
        if deed.road is Road.BROADCAST:
            return _broadcast(slug, "new_order", order)
        return "POST", "orders", order, deed.key
    if isinstance(deed, Changed):
        if deed.road is Road.BROADCAST:
            told = {"orderId": deed.order_id, **deed.members}
            return _broadcast(slug, "order_updated", told)
        expected = {"expectedVersion": deed.expected_version} if deed.expected_version else {}
        return "PATCH", f"orders/{deed.order_id}", {**deed.members, **expected}, None
    if isinstance(deed, Said):
        path = {"received": "received", "accepted": "accepted"}.get(deed.word, "print")
        how = {"paymentMethod": deed.payment_method} if deed.payment_method else {}
        return (
            "POST",
            f"orders/{path}",
            {"orderId": deed.order_id, "status": deed.word, **how},
            None,
        )
    if isinstance(deed, Sold):
        return "POST", "gift-cards", {"cardNumber": deed.number, "amount": deed.amount}, deed.key
    if isinstance(deed, Moved):
        body = {"amount" if deed.ledger == CARDS else "points": abs(deed.change)}
        about = {"orderId": deed.order_id} if deed.order_id else {}
        path = f"{deed.ledger}/{_written(deed.subject)}/{deed.kind}"
        return "POST", path, {**body, **about}, deed.key
    if isinstance(deed, TakenBack):
        path = f"{deed.ledger}/{_written(deed.subject)}/reverse"
        return "POST", path, {"idempotencyKey": deed.key}, None
    if isinstance(deed, Malformed):
        return deed.method, deed.path, deed.body, None
    assert isinstance(deed, Reported)
    return "POST", "reports/daily", _report(deed), None


def _report(deed: Reported) -> dict[str, object]:
    deployed = {"totalOrders": "order_count"}
    if not deed.is_deployed:
        return {"reportDate": DATE, **deed.figures}
    named = {deployed.get(name, snake(name)): value for name, value in deed.figures.items()}
    return {"report_date": DATE, **named}


def _broadcast(
    slug: str, kind: str, data: Mapping[str, object]
) -> tuple[str, str, object, str | None]:
    return "POST", "/broadcast", {"tenant": slug, "event": {"type": kind, "data": data}}, None


def _written(subject: str) -> str:
    """Return a card or a telephone number as people write it."""
    return quote(f"0{subject[3:]}") if subject.startswith("+44") else f"%20{subject.lower()}"


def check(happening: Happening, answer: Answer, *, is_first: bool) -> None:
    """Check an answer. Raises `AssertionError` if it is not the expected one."""
    deed, outcome, said = happening.deed, happening.outcome, answer.json
    if outcome.is_refusal:
        status = deed.status if isinstance(deed, Malformed) else _STATUSES[outcome.code]
        assert (answer.status, said["code"]) == (status, outcome.code), answer
        if outcome.after is not None:
            assert outcome.after in (said.get("currentBalance"), said.get("currentPoints")), answer
        return
    assert answer.status in _successes(deed), answer
    if isinstance(deed, Sold | Moved):
        # It is unknown whether a call without an answer was executed.
        assert happening.is_lost or answer.is_replayed is not is_first, answer
        _check_moved(deed, outcome, said)
    elif isinstance(deed, TakenBack):
        assert said["newBalance" if deed.ledger == CARDS else "newPoints"] == outcome.after, answer
        assert said["tombstoned"] is (outcome.code == "tombstoned"), answer
    elif isinstance(deed, Placed | Changed) and deed.road is Road.REST:
        assert said["version"] == outcome.version, answer
        assert not is_first or (said["id"] is None) is (outcome.code == "unchanged"), answer
    elif isinstance(deed, Reported):
        assert said["data"]["balanced"] is not deed.is_deployed, answer
        assert said["data"]["created"] is (deed.is_deployed and is_first), answer


def _successes(deed: Deed) -> tuple[int, ...]:
    """Return the statuses of a success: 200 if an order exists already. A repetition with a key has the same
    answer.
    """
    if isinstance(deed, Sold):
        return (201,)
    return (201, 200) if isinstance(deed, Placed) and deed.road is Road.REST else (200,)


def _check_moved(deed: Sold | Moved, outcome: Outcome, said: Mapping[str, Any]) -> None:
    if isinstance(deed, Sold):
        told = (said["initialBalance"], said["balance"])
        assert told == (deed.amount, outcome.after), said
        return
    names = {
        "deduct": ("previousBalance", "amountDeducted", "newBalance", "remainingBalance"),
        "add": ("previousPoints", "pointsAdded", "newPoints", "newPoints"),
        "redeem": ("previousPoints", "pointsRedeemed", "newPoints", "remainingPoints"),
    }[deed.kind]
    assert outcome.after is not None
    expected = [outcome.after - deed.change, abs(deed.change), outcome.after, outcome.after]
    assert [said[name] for name in names] == expected, said
    assert [said["data"][name] for name in names] == expected, said
