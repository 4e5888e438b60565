"""The expected state of a shop, computed with simple arithmetic: cards, points, orders, sales.

All deeds concern one subject at a time. Each returns the expected outcome. `Books.told` has the events
that tills must receive about each subject, in order. This module does not use posd, so that both compute
the results independently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

from attrs import define, field, frozen

Amount: TypeAlias = Decimal | int
"""Money on a card, or points."""

CARDS: Final = "gift-cards"
POINTS: Final = "loyalty"
PLATFORM: Final = "platform"
SHOP: Final = "shop"

WAY: Final = (
    *("pending", "confirmed", "preparing", "ready", "out_for_delivery", "delivered"),
    *("completed", "cancelled", "refunded"),
)
"""The statuses of an order, in order."""
_STEPS_AT_THE_END: Final[Mapping[str, tuple[str, ...]]] = {
    "delivered": ("completed", "refunded"),
    "completed": ("refunded",),
    "cancelled": ("refunded",),
    "refunded": (),
}
PRINTS: Final = ("pending", "sent_to_pos", "failed", "printed")
"""The print statuses of an order, which never go back."""
TENDERS: Final = {"cash": "cashSales", "card": "cardSales", "gift_card": "giftCardSales"} | {
    "online": "onlineSales"
}
"""The ways to pay for an order, and their members in a report."""
_SALES: Final = ("purchase", "activate")
_NULLABLE: Final = (
    *("customerName", "customerPhone", "customerEmail", "paymentMethod", "voucherCode"),
    *("deliveryAddress", "scheduledFor", "scheduledTime"),
)


@frozen
class Outcome:
    """The expected result of a deed: the code of a refusal, or one of the words below.

    `made`; `replayed` (it already existed); `unchanged` (nothing new); `tombstoned` (it must not happen
    any more). `after` is the balance, `version` that of the order.
    """

    code: str
    after: Amount | None = None
    version: int | None = None

    @property
    def is_refusal(self) -> bool:
        return self.code not in ("made", "replayed", "unchanged", "tombstoned")


@frozen
class Told:
    """An event that tills must receive. `says` has members of its data."""

    type: str
    says: Mapping[str, object]


@define(eq=False)
class Line:
    """A row of a ledger."""

    kind: str
    change: Amount
    after: Amount
    by: str
    key: str | None
    order_id: str | None = None
    is_taken_back: bool = False


@define(eq=False)
class Account:
    """A card or a loyalty account. An unknown one was only named by a reversal."""

    ledger: str
    subject: str
    lines: list[Line] = field(factory=list)
    is_known: bool = False
    is_blocked: bool = False

    @property
    def balance(self) -> Amount:
        return self.lines[-1].after if self.lines else Decimal() if self.ledger == CARDS else 0

    @property
    def initial(self) -> Amount:
        """Return its initial balance."""
        return [line.change for line in self.lines if line.kind in _SALES][-1]

    @property
    def status(self) -> str:
        if self.is_blocked:
            return "blocked"
        return "active" if self.balance else "depleted"

    @property
    def is_sold(self) -> bool:
        """Return whether the card was sold; then it cannot be sold again."""
        paid = (*_SALES, "top_up")
        return any(line.kind in paid and not line.is_taken_back for line in self.lines)

    def earlier(self, by: str, key: str | None) -> Line | None:
        """Return the line of a key. A platform's reversal that came first counts for all."""
        own = [line for line in self.lines if key and line.key == key and line.by == by]
        of_platform = [
            line
            for line in self.lines
            if key and line.key == key and (line.by, line.kind) == (PLATFORM, "tombstone")
        ]
        return next(iter(own + of_platform), None)

    def append(
        self, kind: str, change: Amount, by: str, key: str | None, order: str | None
    ) -> Line:
        self.lines.append(Line(kind, change, self.balance + change, by, key, order))
        return self.lines[-1]


@define(eq=False)
class Order:
    """An order as tills have it. `row` is the row of the shop's own table, if there is one."""

    content: dict[str, Any]
    row: dict[str, Any] | None = None
    version: int = 1
    print_status: str = "sent_to_pos"

    @property
    def status(self) -> str:
        return str(self.content["status"])

    @property
    def is_paid(self) -> bool:
        return bool(self.content["paymentStatus"] == "paid")


@define(eq=False)
class Books:
    """The cards, customers and orders of a shop, and the events about them."""

    cards: dict[str, Account] = field(factory=dict)
    customers: dict[str, Account] = field(factory=dict)
    orders: dict[str, Order] = field(factory=dict)
    told: dict[str, list[Told]] = field(factory=dict)

    @property
    def head(self) -> int:
        """Return the number of events."""
        return sum(len(told) for told in self.told.values())

    def accounts(self, ledger: str) -> dict[str, Account]:
        return self.cards if ledger == CARDS else self.customers

    def sell(self, number: str, amount: Decimal, by: str, key: str, kind: str) -> Outcome:
        """Sell a card."""
        card = self.cards.get(number) or Account(CARDS, number)
        if (line := card.earlier(by, key)) is not None:
            return _again(line, kind, amount)
        if card.is_blocked:
            return Outcome("card_blocked")
        if card.is_sold:
            return Outcome("card_exists")
        self.cards[number] = card
        card.is_known = True
        return self._made(card, card.append(kind, amount, by, key, None))

    def move(
        self,
        ledger: str,
        subject: str,
        kind: str,
        change: Amount,
        by: str,
        key: str,
        order: str | None,
    ) -> Outcome:
        """Spend or earn."""
        account = self.accounts(ledger).get(subject) or Account(ledger, subject)
        if (line := account.earlier(by, key)) is not None:
            return _again(line, kind, change)
        if not account.is_known and (ledger == CARDS or kind != "add"):
            return Outcome("unknown_card" if ledger == CARDS else "unknown_customer")
        self.accounts(ledger)[subject] = account
        if account.is_blocked:
            return Outcome("card_blocked")
        if (
            kind == "add"
            and order
            and any((line.kind, line.order_id) == ("add", order) for line in account.lines)
        ):
            return Outcome("already_earned")
        if account.balance + change < 0:
            return _insufficient(account)
        account.is_known = True
        return self._made(account, account.append(kind, change, by, key, order))

    def take_back(self, ledger: str, subject: str, by: str, key: str) -> Outcome:
        """Reverse the movement of a key, or prevent a later one."""
        account = self.accounts(ledger).setdefault(subject, Account(ledger, subject))
        named = [line for line in account.lines if line.key == key]
        lines = [line for line in named if line.by == by]
        if not lines and by in (PLATFORM, SHOP):
            lines = [line for line in named if line.kind != "tombstone"]
        if not lines:
            account.append("tombstone", 0, by, key, None)
            return Outcome("tombstoned", account.balance)
        (line,) = lines
        if line.kind == "tombstone":
            return Outcome("tombstoned", line.after)
        if line.is_taken_back:
            back = account.lines[account.lines.index(line) + 1 :]
            return Outcome("made", next(each.after for each in back if each.key == _back(key)))
        if account.balance - line.change < 0:
            return _insufficient(account)
        line.is_taken_back = True
        return self._made(
            account, account.append("reverse", -line.change, by, _back(key), line.order_id)
        )

    def block(self, number: str, *, blocked: bool) -> Outcome:
        """Block a card, as a shop does by SQL."""
        card = self.cards[number]
        card.is_blocked = blocked
        says = {"change": Decimal(), "balance": card.balance, "transactionType": "status"}
        self._tell(
            number, "gift_card_updated", {"cardNumber": number, **says, "status": card.status}
        )
        return Outcome("made", card.balance)

    def place(
        self,
        order_id: str,
        content: Mapping[str, Any],
        *,
        row: bool = False,
        strictly: bool = False,
    ) -> Outcome:
        """Place an order. If it exists already, `strictly` refuses it."""
        order = self.orders.get(order_id)
        if order is not None:
            if strictly and _differs(order, content):
                return Outcome("order_exists")
            return self.change(order_id, content)
        whole = dict.fromkeys(_NULLABLE) | {"orderSource": "online", "currency": "GBP"}
        made = Order({**whole, "orderId": order_id, **_paired(content)})
        made.row = dict(content) if row else None
        self.orders[order_id] = made
        self._tell(order_id, "new_order", {**made.content, "version": 1})
        return Outcome("made", version=1)

    def change(self, order_id: str, members: Mapping[str, Any], *, row: bool = False) -> Outcome:
        """Apply a change of an order without conditions."""
        order = self.orders[order_id]
        if row and order.row is not None:
            order.row.update(members)
            members = order.row
        if not _differs(order, members):
            return Outcome("unchanged", version=order.version)
        previous = order.status
        order.content.update(_paired(members))
        order.version += 1
        says = {**order.content, "version": order.version, "previousStatus": previous}
        self._tell(order_id, "order_updated", says)
        return Outcome("made", version=order.version)

    def ask_change(
        self, order_id: str, members: Mapping[str, Any], expected: int | None
    ) -> Outcome:
        """Apply a change that requires the status that the platform expects."""
        order = self.orders.get(order_id)
        if order is None:
            return Outcome("unknown_order")
        if expected not in (None, order.version):
            return Outcome("version_mismatch")
        if not may_become(order.status, members.get("status", order.status)):
            return Outcome("invalid_transition")
        return self.change(order_id, members)

    def printed(self, order_id: str, status: str) -> Outcome:
        """Apply the print report of a till."""
        order = self.orders[order_id]
        order.print_status = max(order.print_status, status, key=PRINTS.index)
        return Outcome("made")

    def sales(self) -> dict[str, Amount]:
        """Return the day's report of a till: money in pennies, and all members."""
        paid = [order for order in self.orders.values() if order.is_paid]
        figures: dict[str, Amount] = {name: Decimal() for name in TENDERS.values()}
        for order in paid:
            figures[TENDERS[order.content["paymentMethod"]]] += order.content["totalAmount"]
        refunded = [order for order in paid if order.status == "refunded"]
        total = sum(figures.values(), Decimal())
        discounts = sum((order.content["discount"] for order in paid), Decimal())
        refunds = sum((order.content["totalAmount"] for order in refunded), Decimal())
        sums = {"discounts": discounts, "refunds": refunds, "netSales": total - discounts - refunds}
        return {"totalSales": total, "totalOrders": len(paid), **figures, **sums}

    def _made(self, account: Account, line: Line) -> Outcome:
        self._tell(account.subject, *_movement(account, line))
        return Outcome("made", line.after)

    def _tell(self, subject: str, kind: str, says: Mapping[str, object]) -> None:
        self.told.setdefault(subject, []).append(Told(kind, dict(says)))


def may_become(before: str, after: str) -> bool:
    """Return whether a platform may change an order to a status."""
    if before == after:
        return True
    if before in _STEPS_AT_THE_END:
        return after in _STEPS_AT_THE_END[before]
    return WAY.index(after) > WAY.index(before)


def movements(account: Account) -> Iterator[Line]:
    """Return the lines that have moved something."""
    return (line for line in account.lines if line.kind != "tombstone")


def _movement(account: Account, line: Line) -> tuple[str, dict[str, object]]:
    """Return the event of a line: its type and members."""
    if account.ledger == POINTS:
        kind = line.kind if line.kind in ("add", "redeem") else "adjust"
        moved = {"pointsChange": line.change, "newBalance": line.after, "transactionType": kind}
        return "loyalty_updated", {"customerPhone": account.subject, **moved}
    if line.kind in _SALES:
        sold = {"initialBalance": line.change, "currentBalance": line.after}
        return "gift_card_purchased", {"cardNumber": account.subject, **sold}
    moved = {"change": line.change, "balance": line.after, "transactionType": line.kind}
    return "gift_card_updated", {"cardNumber": account.subject, **moved}


def _again(line: Line, kind: str, change: Amount) -> Outcome:
    if line.kind == "tombstone":
        return Outcome("reversed")
    if (line.kind, line.change) != (kind, change):
        return Outcome("idempotency_mismatch")
    return Outcome("reversed") if line.is_taken_back else Outcome("replayed", line.after)


def _insufficient(account: Account) -> Outcome:
    code = "insufficient_balance" if account.ledger == CARDS else "insufficient_points"
    return Outcome(code, account.balance)


def _back(key: str) -> str:
    """Return the name of a reversal in these books, because posd gives it none."""
    return f"{key} taken back"


def _paired(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return members together with their aliases."""
    twins = {"discount": "discountAmount", "specialInstructions": "notes"}
    return {**members} | {twins[name]: members[name] for name in twins if name in members}


def _differs(order: Order, members: Mapping[str, Any]) -> bool:
    return any(order.content.get(name) != value for name, value in members.items())
