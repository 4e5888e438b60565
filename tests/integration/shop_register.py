"""A shop's own program, which writes its tables by SQL, with one transaction for each deed, without posd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import psycopg2
from attrs import define

from posd.events.fields import snake
from posd.protocol import jsontext
from tests.shop_books import CARDS, POINTS, Outcome
from tests.shop_deeds import Blocked, Changed, Deed, Moved, Placed, Sold, TakenBack


@define(eq=False)
class Register:
    """A shop's own program, which writes its tables by SQL and does not know posd."""

    connection: Any
    schema: str

    def write(self, deed: Deed, outcome: Outcome) -> None:
        """Run a transaction. What the schema refuses was not possible."""
        refused = False
        try:
            with self.connection, self.connection.cursor() as cursor:
                self._write(cursor, deed)
                if isinstance(deed, Placed) and deed.is_rolled_back:
                    raise _ChangedItsMind
        except psycopg2.errors.CheckViolation as failure:
            refused = str(failure.diag.constraint_name).endswith("_not_overdrawn")
            assert refused, failure
        except _ChangedItsMind:
            pass
        assert refused is outcome.is_refusal, outcome

    def _write(self, cursor: Any, deed: Deed) -> None:
        if isinstance(deed, Placed):
            self._order(cursor, deed)
        elif isinstance(deed, Changed):
            self._update(cursor, deed)
        elif isinstance(deed, Sold):
            cursor.execute(
                f"INSERT INTO {self.schema}.gift_cards (card_number, initial_balance) VALUES (%s, %s)",
                (deed.number, deed.amount),
            )
            move = Moved(CARDS, deed.number, "activate", deed.amount, deed.key)
            self._append(cursor, move, deed.key)
        elif isinstance(deed, Moved):
            self._append(cursor, deed, deed.key)
        elif isinstance(deed, TakenBack):
            self._take_back(cursor, deed)
        else:
            assert isinstance(deed, Blocked)
            cursor.execute(
                f"UPDATE {self.schema}.gift_cards SET is_blocked = %s WHERE card_number = %s",
                (deed.is_blocked, deed.number),
            )

    def _order(self, cursor: Any, deed: Placed) -> None:
        """Insert the order first and then its items. posd must see them together."""
        row = {_column(name): value for name, value in deed.content.items() if name != "items"}
        self._insert(cursor, "orders", {"id": deed.order_id, **row})
        for line in deed.content["items"]:
            item = {snake(name): value for name, value in line.items() if name != "id"}
            item["selected_addons"] = jsontext.encode(item["selected_addons"]).decode()
            self._insert(cursor, "order_items", {"order_id": deed.order_id, **item})

    def _update(self, cursor: Any, deed: Changed) -> None:
        """Update each column with a statement of its own, as careless programs do."""
        for name, value in deed.members.items():
            cursor.execute(
                f"UPDATE {self.schema}.orders SET {_column(name)} = %s WHERE id = %s",
                (value, deed.order_id),
            )

    def _take_back(self, cursor: Any, deed: TakenBack) -> None:
        table, _, change = _LEDGERS[deed.ledger]
        cursor.execute(
            f"SELECT t.id, -t.{change} FROM {self.schema}.{table} AS t"
            " WHERE t.principal = 'shop' AND t.idempotency_key = %s",
            (deed.key,),
        )
        ((original, back),) = cursor.fetchall()
        move = Moved(deed.ledger, deed.subject, "reverse", back, deed.key)
        self._append(cursor, move, None, original)

    def _append(
        self, cursor: Any, move: Moved, key: str | None, original: int | None = None
    ) -> None:
        """Append to the chain of a card or a customer, without concurrent writers."""
        table, owner, change = _LEDGERS[move.ledger]
        subject: object = move.subject
        if move.ledger == POINTS:
            cursor.execute(
                f"SELECT id FROM {self.schema}.loyalty_accounts WHERE phone = %s FOR UPDATE",
                (subject,),
            )
            ((subject,),) = cursor.fetchall()
        else:
            cursor.execute(
                f"SELECT FROM {self.schema}.gift_cards WHERE card_number = %s FOR UPDATE",
                (subject,),
            )
        cursor.execute(
            f"SELECT seq, balance_after FROM {self.schema}.{table} WHERE {owner} = %s"
            " ORDER BY seq DESC LIMIT 1",
            (subject,),
        )
        ((last, balance),) = cursor.fetchall() or [(None, 0)]
        row = {owner: subject, "seq": (last or 0) + 1, "prev_seq": last, "balance_before": balance}
        row |= {change: move.change, "balance_after": balance + move.change}
        row |= {"transaction_type": move.kind, "order_id": move.order_id}
        row |= {"idempotency_key": key, "reverses_id": original}
        self._insert(cursor, table, row)

    def _insert(self, cursor: Any, table: str, row: Mapping[str, object]) -> None:
        columns, places = ", ".join(row), ", ".join(["%s"] * len(row))
        cursor.execute(
            f"INSERT INTO {self.schema}.{table} ({columns}) VALUES ({places})", list(row.values())
        )


_LEDGERS: Final = {
    CARDS: ("pos_gift_card_transactions", "card_number", "amount"),
    POINTS: ("pos_loyalty_transactions", "account_id", "points"),
}


def _column(name: str) -> str:
    """Return the column of `orders` for a member of an order."""
    return "discount_amount" if name == "discount" else snake(name)


class _ChangedItsMind(Exception):
    """The shop's program rolls back."""
