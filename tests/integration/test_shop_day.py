"""A whole day of a shop, with all ways to publish and all transports: in the evening all sums agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from decimal import Decimal
from functools import partial
from typing import Any, Final

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from posd.events.fields import snake
from tests import strict_till
from tests.cli_runner import as_role, posctl
from tests.integration.harness import Shop
from tests.integration.shared import shared
from tests.integration.shop_player import Player
from tests.integration.wire_case import until
from tests.shop_books import CARDS, PLATFORM, POINTS, TENDERS, WAY, Told, movements
from tests.shop_day import ShopDay
from tests.shop_deeds import DATE, FRONT, TILLS, Reported

SEEDS: Final = (20261122, 20261123)
_CLOCKS: Final = ("createdAt", "updatedAt")
_SUBJECTS: Final = ("orderId", "cardNumber", "customerPhone")
_LEDGERS: Final = {
    CARDS: ("pos_gift_card_transactions", "amount"),
    POINTS: ("pos_loyalty_transactions", "points"),
}


@frozen
class Evening:
    """The end of a day: the expected state, and the ways to read the real one.

    `is_quiet`: no more data was under way when the tills were closed.
    """

    day: ShopDay
    player: Player
    streams: Mapping[str, list[dict[str, Any]]]
    is_quiet: bool

    @property
    def told(self) -> list[dict[str, Any]]:
        return self.streams[FRONT]

    def by_subject(self) -> dict[str, list[dict[str, Any]]]:
        """Return the events of the tills by order, card and customer: by the first that an event names."""
        told: dict[str, list[dict[str, Any]]] = {}
        for event in self.told:
            subject = next(event["data"][name] for name in _SUBJECTS if name in event["data"])
            told.setdefault(subject, []).append(event)
        return told

    def rows(self, sql: str, *parameters: object) -> list[Any]:
        """Run a statement. `{schema}` is the tenant's."""
        return self.player.shop.query(sql.format(schema=self.player.schema), parameters or None)

    def chains(self, table: str, change: str) -> dict[str, list[Any]]:
        """Return a ledger's rows by card or phone: place, balance before, kind, change, balance after."""
        owner = "card_number" if table == "pos_gift_card_transactions" else "account_id"
        phone = "(SELECT phone FROM {schema}.loyalty_accounts AS a WHERE a.id = account_id)"
        chains: dict[str, list[Any]] = {}
        for subject, *row in self.rows(
            f"SELECT {owner if owner == 'card_number' else phone}, seq, balance_before,"
            f" transaction_type, {change}, balance_after FROM {{schema}}.{table} ORDER BY {owner}, seq"
        ):
            chains.setdefault(subject, []).append(tuple(row))
        return chains

    def reports(self, table: str) -> list[dict[str, Any]]:
        """Return the daily reports, with the member names of requests."""
        columns = {snake(name): name for name in self.day.books.sales()}
        odd = ("revision", "balanced", "issues")
        rows = self.rows(
            f"SELECT {', '.join((*columns, *odd))} FROM {{schema}}.{table} WHERE report_date = %s",
            DATE,
        )
        return [dict(zip((*columns.values(), *odd), row, strict=True)) for row in rows]

    def takings(self) -> dict[str, Decimal]:
        """Return what paid the orders, according to posd."""
        sums = dict(
            self.rows(
                "SELECT snapshot ->> 'paymentMethod', sum((snapshot ->> 'totalAmount')::numeric)"
                " FROM {schema}.pos_orders WHERE payment_status = 'paid' GROUP BY 1"
            )
        )
        return {name: sums.get(method, Decimal()) for method, name in TENDERS.items()}

    def ask(self, path: str, who: str = FRONT) -> Any:
        """Return the answer to a request."""
        answer = self.player.lines[who].call("GET", path)
        assert answer.status == 200, answer
        return answer.json


def evening(seed: int) -> Evening:
    """Return the evening of this seed's day. Raises the exception of its play for all tests."""
    played = _played(seed)
    if isinstance(played, AssertionError):
        raise played
    return played


@shared
def _played(stack: ExitStack, seed: int) -> Evening | AssertionError:
    """Play a day, once for all tests."""
    shop = Shop.open([])
    stack.callback(shop.close)
    posd = shop.start("[limits]\nfailed_auth_per_minute = 10000")
    slug = f"day-{seed}"
    shop.add_tenant(slug)
    day, player = ShopDay.of(seed), Player(shop, posd, slug)
    stack.callback(player.close)
    try:
        player.open()
        for moment in day.moments:
            player.play(moment)
        is_quiet = player.go_home()
        heard = {name: till.heard for name, till in player.tills.items()}
        streams = {name: [strict_till.read(each) for each in heard[name]] for name in TILLS}
    except Exception as failure:
        # Each test of this day raises it, and none plays the day again.
        told = AssertionError(f"seed {seed}, after {player.played} moments: {failure}")
        told.__cause__ = failure
        return told
    return Evening(day, player, streams, is_quiet)


class ShopDayTests(SynchronousTestCase):
    def evenings(self) -> Iterator[Evening]:
        """Yield each evening. A failure names its seed."""
        for seed in SEEDS:
            with self.subTest(seed=seed):
                yield evening(seed)

    def test_every_till_sees_every_event_once_and_in_order(self) -> None:
        for over in self.evenings():
            last = over.day.books.head
            for till, stream in over.streams.items():
                self.assertEqual([each["id"] for each in stream], list(range(1, last + 1)), till)
                self.assertEqual(_plain(stream), _plain(over.told), till)

    def test_nothing_else_is_in_the_stream_and_nothing_has_failed(self) -> None:
        for over in self.evenings():
            log = over.rows(
                "SELECT seq, event_type, failure FROM {schema}.pos_sync_logs"
                " WHERE seq IS NOT NULL OR failure IS NOT NULL ORDER BY id"
            )
            self.assertEqual(log, [(each["id"], each["type"], None) for each in over.told])
            self.assertTrue(over.is_quiet)

    def test_each_subject_is_told_of_what_became_of_it_and_of_nothing_else(self) -> None:
        for over in self.evenings():
            told = over.by_subject()
            self.assertEqual(told.keys(), over.day.books.told.keys())
            for subject, expected in over.day.books.told.items():
                self.assertEqual(_said(told[subject], expected), expected, subject)

    def test_the_clock_of_an_order_stands_at_its_making(self) -> None:
        for over in self.evenings():
            for order_id in over.day.books.orders:
                made = {each["data"]["createdAt"] for each in over.by_subject()[order_id]}
                self.assertEqual(len(made), 1, order_id)

    def test_each_order_ends_as_the_books_have_it(self) -> None:
        for over in self.evenings():
            for order_id, order in over.day.books.orders.items():
                shown = over.ask(f"orders/{order_id}", PLATFORM)
                expected = {**order.content, "version": order.version, "success": True}
                self.assertEqual({name: shown.get(name) for name in expected}, expected)
                self.assertEqual(shown["items"], order.content["items"])

    def test_each_order_is_as_far_on_paper_as_tills_have_said(self) -> None:
        for over in self.evenings():
            expected = {name: each.print_status for name, each in over.day.books.orders.items()}
            until(partial(_is_printed, over, expected), "print statuses as they were told")
            open_orders = over.ask("orders/pending?limit=500")["orders"]
            self.assertEqual(
                {each["id"] for each in open_orders},
                {
                    name
                    for name, each in over.day.books.orders.items()
                    if each.print_status != "printed"
                    and WAY.index(each.status) < WAY.index("delivered")
                },
            )

    def test_each_ledger_is_the_books_row_by_row_and_its_chain_unbroken(self) -> None:
        for over in self.evenings():
            for ledger, (table, change) in _LEDGERS.items():
                chains = over.chains(table, change)
                accounts = over.day.books.accounts(ledger)
                self.assertEqual(chains.keys(), accounts.keys())
                for subject, rows in chains.items():
                    lines = [
                        (each.kind, each.change, each.after) for each in accounts[subject].lines
                    ]
                    self.assertEqual([row[2:] for row in rows], lines, subject)
                    self.assertEqual([row[0] for row in rows], list(range(1, len(rows) + 1)))
                    balance = Decimal()
                    for _, before, _, moved, after in rows:
                        self.assertEqual((before, before + moved), (balance, after), subject)
                        balance = after

    def test_each_movement_has_one_event_with_its_change_and_balance(self) -> None:
        for over in self.evenings():
            for table, change in _LEDGERS.values():
                for subject, rows in over.chains(table, change).items():
                    moved = [row[3:] for row in rows if row[2] != "tombstone"]
                    told = [_moved(each["data"]) for each in over.by_subject().get(subject, ())]
                    self.assertEqual([each for each in told if each[0]], moved, subject)

    def test_rest_tells_the_balances_that_the_rows_add_up_to(self) -> None:
        for over in self.evenings():
            for number, card in over.day.books.cards.items():
                table, change = _LEDGERS[CARDS]
                total = sum(row[3] for row in over.chains(table, change)[number])
                told = over.ask(f"gift-cards/{number}/balance")
                self.assertEqual((told["balance"], told["status"]), (total, card.status), number)
                self.assertEqual(
                    (told["balance"], told["initialBalance"]), (card.balance, card.initial)
                )
            for phone, customer in over.day.books.customers.items():
                told = over.ask(f"loyalty/0{phone[3:]}/points")
                recent = [(each["points"], each["balance"]) for each in told["recentTransactions"]]
                lines = [(each.change, each.after) for each in movements(customer)]
                self.assertEqual(
                    (told["points"], recent), (customer.balance, lines[:-11:-1]), phone
                )

    def test_the_report_says_what_orders_and_ledgers_add_up_to(self) -> None:
        for over in self.evenings():
            sales = over.day.books.sales()
            (report,) = over.reports("pos_daily_reports")
            self.assertEqual((report.pop("balanced"), report.pop("issues")), (True, []))
            self.assertEqual((report.pop("revision"), report), (2, sales))
            self.assertEqual(over.takings(), {name: sales[name] for name in TENDERS.values()})
            ((paid_by_card, given_back),) = over.rows(
                "SELECT -sum(amount) FILTER (WHERE transaction_type = 'deduct'),"
                " coalesce(sum(amount) FILTER (WHERE transaction_type = 'reverse'), 0)"
                " FROM {schema}.pos_gift_card_transactions WHERE order_id IS NOT NULL"
            )
            refunded = [
                each.content["totalAmount"]
                for each in over.day.books.orders.values()
                if (each.status, each.content["paymentMethod"]) == ("refunded", "gift_card")
            ]
            self.assertEqual(paid_by_card, sales["giftCardSales"])
            self.assertEqual(given_back, sum(refunded, Decimal()))

    def test_the_report_that_was_a_penny_short_is_kept_as_an_amendment(self) -> None:
        for over in self.evenings():
            first = next(
                each.deed for each in over.day.happenings if isinstance(each.deed, Reported)
            )
            (report,) = over.reports("pos_daily_report_amendments")
            (issue,) = report.pop("issues")
            self.assertEqual((issue["kind"], issue["field"]), ("disagrees", "totalSales"))
            self.assertEqual((report.pop("revision"), report.pop("balanced")), (1, False))
            self.assertEqual(report, first.figures)

    def test_nothing_is_left_to_be_delivered(self) -> None:
        for over in self.evenings():
            status = until(partial(_delivered, over), "everything delivered")
            self.assertEqual(status["lastEventId"], over.day.books.head)
            acked = {
                each["deviceId"]: each["lastAckId"] for each in status["websocket"]["terminals"]
            }
            self.assertEqual(acked, dict.fromkeys(TILLS, over.day.books.head))

    def test_an_audit_finds_nothing_wrong(self) -> None:
        for over in self.evenings():
            dsn = as_role(over.player.shop.dsn, "posd")
            ran = posctl("audit", "--tenant", over.player.slug, "--json", dsn=dsn)
            self.assertEqual((ran.code, ran.err), (0, ""), ran.out)


def _is_printed(over: Evening, expected: Mapping[str, str]) -> bool:
    sql = "SELECT order_id, print_status FROM {schema}.pos_orders"
    return dict(over.rows(sql)) == expected


def _delivered(over: Evening) -> Any:
    """Return the state of the tills when no data is under way."""
    status = over.ask("pos-status")
    behind = [each["behind"] for each in status["websocket"]["terminals"]]
    return status if status["undelivered"] == 0 and not any(behind) else None


def _plain(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events without the mark of a replay."""
    return [{n: value for n, value in each.items() if n != "replay"} for each in stream]


def _said(events: list[dict[str, Any]], expected: list[Told]) -> list[Told]:
    """Return events as the books have them: orders without clocks, and the named members of others."""
    if len(events) != len(expected):
        return [Told(each["type"], each["data"]) for each in events]
    return [
        Told(
            each["type"],
            {
                name: value
                for name, value in each["data"].items()
                if name in told.says or (name not in _CLOCKS and "orderId" in told.says)
            },
        )
        for each, told in zip(events, expected, strict=True)
    ]


def _moved(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the change and the balance of a ledger event."""
    if "initialBalance" in data:
        return data["initialBalance"], data["currentBalance"]
    if "pointsChange" in data:
        return data["pointsChange"], data["newBalance"]
    return data["change"], data["balance"]
