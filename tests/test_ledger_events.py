"""The events of ledger movements, for all writers of the rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, Final, TypeVar

from attrs import define, evolve, field

from posd.database.connection import Parameters, Row
from posd.database.reconnecting import ReconnectingConnection, TransactionExecutor
from posd.store import giftcards, loyalty, loyalty_accounts
from posd.store.ledgers import MovementCause
from posd.values import Tenant
from tests.database_case import REACTOR, until
from tests.sequencer_case import GRILL, KITCHEN, SequencerCase

T = TypeVar("T")

SHOP: Final = MovementCause("platform")
ANN: Final = "+447700900123"
TENANT: Final = Tenant(1, "kitchen", "The kitchen", "dinedesk_kitchen")
MOVE: Final = """
    INSERT INTO dinedesk_kitchen.pos_gift_card_transactions
        (card_number, seq, prev_seq, balance_before, amount, balance_after, transaction_type)
    VALUES ('GC-1', 1, NULL, 0, 50, 50, 'purchase'), ('GC-1', 2, 1, 50, -20, 30, 'deduct')
"""


@define(eq=False)
class Counted:
    """A transaction that counts its statements."""

    executor: TransactionExecutor
    statements: list[str] = field(factory=list)

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        self.statements.append(sql)
        return await self.executor.query(sql, parameters)

    async def execute(self, sql: str, parameters: Parameters = ()) -> None:
        self.statements.append(sql)
        await self.executor.execute(sql, parameters)

    async def finish(self, sql: str, parameters: Parameters = ()) -> str:
        self.statements.append(sql)
        return await self.executor.finish(sql, parameters)


class StatementLink(ReconnectingConnection):
    """A link that records the statements of each transaction."""

    transactions: list[list[str]]

    def most(self) -> int:
        """Return the number of statements of the longest transaction since the last call."""
        most = max(map(len, self.transactions))
        self.transactions.clear()
        return most

    async def transaction(
        self,
        work: Callable[[TransactionExecutor], Awaitable[T]],
        *,
        deadline: float | None = None,
        work_seconds: float | None = None,
    ) -> T:
        async def counted(executor: TransactionExecutor) -> T:
            counting = Counted(executor)
            self.transactions.append(counting.statements)
            return await work(counting)

        return await ReconnectingConnection.transaction(
            self, counted, deadline=deadline, work_seconds=work_seconds
        )


class LedgerEventTests(SequencerCase):
    async def executor(self) -> ReconnectingConnection:
        return await self.up(
            ReconnectingConnection(REACTOR, self.dsn, name="posd store", statement_timeout=300.0)
        )

    def told(self) -> list[tuple[str, Any]]:
        return [(logged.type, logged.data) for logged in self.log_of()]

    async def test_each_movement_of_a_card_is_one_event_in_its_order(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        await giftcards.purchase(executor, TENANT, "GC-1", 50, evolve(SHOP, key="k"))
        spent = await giftcards.deduct(executor, TENANT, "GC-1", Decimal("12.50"), SHOP)
        await giftcards.reverse(executor, TENANT, "GC-1", SHOP, transaction_id=spent.transaction_id)
        await giftcards.top_up(executor, TENANT, "GC-1", 5, SHOP)
        # A retry and a tombstone move nothing.
        await giftcards.purchase(executor, TENANT, "GC-1", 50, evolve(SHOP, key="k"))
        await giftcards.reverse(executor, TENANT, "GC-1", SHOP, key="unheard-of")
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(), [1, 2, 3, 4])
        (sale, sold), *others = self.told()
        self.assertEqual((sale, sold["initialBalance"]), ("gift_card_purchased", 50))
        self.assertEqual(
            [(kind, d["transactionType"], d["change"], d["balance"]) for kind, d in others],
            [
                ("gift_card_updated", "deduct", -12.5, 37.5),
                ("gift_card_updated", "reverse", 12.5, 50),
                ("gift_card_updated", "top_up", 5, 55),
            ],
        )

    async def test_each_movement_of_points_is_one_event_in_its_order(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        cause = evolve(SHOP, key="k", note="lunch")
        await loyalty.add(executor, TENANT, ANN, 100, SHOP, joining=True)
        await loyalty.redeem(executor, TENANT, ANN, 30, cause)
        await loyalty.reverse(executor, TENANT, ANN, SHOP, key="k")
        await loyalty.adjust(executor, TENANT, ANN, -1, SHOP)
        await self.emptied(sequencer)
        account = await loyalty_accounts.find_account(executor, TENANT, ANN)
        assert account is not None
        told = self.told()
        self.assertEqual({kind for kind, _ in told}, {"loyalty_updated"})
        self.assertEqual({d["customerId"] for _, d in told}, {str(account.id)})
        self.assertEqual(
            [(d["transactionType"], d["pointsChange"], d["newBalance"]) for _, d in told],
            [("add", 100, 100), ("redeem", -30, 70), ("adjust", 30, 100), ("adjust", -1, 99)],
        )
        self.assertEqual([d["reason"] for _, d in told], [None, "lunch", None, None])

    async def test_what_a_shop_writes_by_sql_is_told_as_well(self) -> None:
        sequencer = await self.started()
        self.admin.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES ('GC-1')")
        self.admin.run(MOVE)
        self.admin.run(
            "UPDATE dinedesk_kitchen.gift_cards SET is_blocked = true WHERE card_number = 'GC-1'"
        )
        await self.emptied(sequencer)
        self.assertEqual(
            [(kind, d.get("balance"), d.get("status")) for kind, d in self.told()],
            [
                ("gift_card_purchased", None, None),
                ("gift_card_updated", 30, None),
                ("gift_card_updated", 30, "blocked"),
            ],
        )

    async def test_only_what_concerns_a_cards_use_is_told_of_a_change(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        await giftcards.purchase(executor, TENANT, "GC-1", 50, SHOP)
        await giftcards.block(executor, TENANT, "GC-1")
        await giftcards.block(executor, TENANT, "GC-1")
        await self.emptied(sequencer)
        await giftcards.unblock(executor, TENANT, "GC-1")
        for change in ("recipient_name = 'Bob'", "is_blocked = false", "initial_balance = 7"):
            self.admin.run(f"UPDATE dinedesk_kitchen.gift_cards SET {change}")
        await self.emptied(sequencer)
        self.admin.run("UPDATE dinedesk_kitchen.gift_cards SET expiry_date = '2020-01-01Z'")
        await self.emptied(sequencer)
        self.assertEqual(
            [(d["status"], d["expiryDate"]) for _, d in self.told()[1:]],
            [("blocked", None), ("active", None), ("expired", "2020-01-01T00:00:00.000Z")],
        )

    async def test_a_sale_after_its_reversal_is_no_change_of_the_card(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        await giftcards.reverse(executor, TENANT, "GC-1", SHOP, key="k")
        until = giftcards.CardDetails(expiry_date=self.admin.value("SELECT now() + '1 day'"))
        await giftcards.purchase(executor, TENANT, "GC-1", 5, SHOP, until)
        await self.emptied(sequencer)
        self.assertEqual([kind for kind, _ in self.told()], ["gift_card_purchased"])

    async def test_what_was_rolled_back_and_what_was_loaded_in_bulk_is_not_told(self) -> None:
        sequencer = await self.started()
        self.admin.run("INSERT INTO dinedesk_kitchen.gift_cards VALUES ('GC-1')")
        self.admin.run("BEGIN")
        self.admin.run(MOVE)
        self.admin.run("ROLLBACK")
        self.admin.run("SET posd.hooks = 'off'")
        self.admin.run(MOVE)
        self.admin.run("UPDATE dinedesk_kitchen.gift_cards SET is_blocked = true")
        self.assertEqual(self.waiting, 0)
        self.publish("notice", {})
        await self.emptied(sequencer)
        self.assertEqual([kind for kind, _ in self.told()], ["notice"])

    async def test_movements_take_their_turn_among_orders(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        self.place_order()
        await giftcards.purchase(executor, TENANT, "GC-1", 50, SHOP)
        self.place_order()
        await self.emptied(sequencer)
        self.assertEqual(
            [kind for kind, _ in self.told()], ["new_order", "gift_card_purchased", "new_order"]
        )

    async def test_a_batch_without_movements_costs_no_statement_more(self) -> None:
        connection = StatementLink(
            REACTOR, self.dsn, name="posd sequencer", statement_timeout=300.0
        )
        connection.transactions = []
        executor, sequencer = await self.executor(), await self.started(await self.up(connection))
        self.place_order()
        await self.emptied(sequencer)
        connection.transactions.clear()
        self.place_order()
        await self.emptied(sequencer)
        self.assertEqual(connection.most(), 2)
        self.place_order()
        await giftcards.purchase(executor, TENANT, "GC-1", 50, SHOP)
        await self.emptied(sequencer)
        self.assertEqual(connection.most(), 3)

    async def test_ledgers_that_are_gone_hold_nothing_up(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        await giftcards.purchase(executor, TENANT, "GC-1", 50, SHOP)
        self.admin.run("DROP TABLE dinedesk_kitchen.pos_gift_card_transactions CASCADE")
        self.place_order()
        await self.emptied(sequencer)
        self.assertEqual([kind for kind, _ in self.told()], ["new_order"])

    async def test_ledgers_that_cannot_be_read_hold_up_their_own_shop_only(self) -> None:
        executor, sequencer = await self.executor(), await self.started()
        await giftcards.purchase(executor, TENANT, "GC-1", 50, SHOP)
        self.admin.run("REVOKE SELECT ON dinedesk_kitchen.gift_cards FROM posd")
        self.place_order(GRILL)
        sequencer.wake()
        await until(lambda: self.waiting == 1, "the grill's order is out")
        await until(lambda: not sequencer._working, "the sequencer rests")
        self.assertEqual(self.seqs(GRILL), [1])
        self.admin.run("GRANT SELECT ON dinedesk_kitchen.gift_cards TO posd")
        self.clock.advance(60)
        await self.emptied(sequencer)
        self.assertEqual(self.seqs(KITCHEN), [1])
        self.assertEqual(len(self.flushLoggedErrors()), 0)
