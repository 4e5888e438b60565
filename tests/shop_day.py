"""Generate a day of a restaurant from a seed: the deeds, their ways to posd, and the expected results.

    day = ShopDay.of(seed=1)          # the same for the same seed, on every machine
    for moment in day.moments: …      # deeds at the same time, about different orders, cards and customers
    day.books                         # the expected state in the evening

This module only plans. The deeds of one moment may be done in any order, and concurrently. The deeds of the
next moment come after all consequences of this one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, Self

from attrs import define, field

from tests import shop_guests as guests
from tests.shop_books import (
    CARDS,
    PLATFORM,
    POINTS,
    PRINTS,
    SHOP,
    WAY,
    Account,
    Amount,
    Books,
    Line,
    Order,
    Outcome,
)
from tests.shop_deeds import (
    FRONT,
    OFFICE,
    WANDERERS,
    Blocked,
    Changed,
    Deed,
    Happening,
    Malformed,
    Moment,
    Moved,
    Placed,
    Reported,
    Road,
    Said,
    Sold,
    TakenBack,
    Walked,
)
from tests.shop_guests import CONTENT, MALFORMED, NAMES, PHONES, WISHES


@define(eq=False)
class ShopDay:
    """A day while it is planned, and afterwards."""

    seed: int
    books: Books = field(factory=Books)
    moments: list[Moment] = field(factory=list)
    _chance: random.Random = field(init=False)
    _due: list[tuple[str, Callable[[], Happening]]] = field(factory=list)
    """The follow-up deeds, by subject."""
    _busy: set[str] = field(factory=set)
    _away: set[str] = field(factory=set)
    _count: int = 0

    def __attrs_post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    @classmethod
    def of(cls, seed: int, moments: int = 45) -> Self:
        """Plan a whole day."""
        day = cls(seed)
        for _ in range(moments):
            day._moment(day._chance.randrange(5, 11))
        day._settle_up()
        miscounted = {**day.books.sales()}
        miscounted["cashSales"] -= Decimal("0.01")
        day._report(miscounted, is_deployed=True)
        for _ in range(5):
            day._moment(4)
        day._settle_up()
        day._report(day.books.sales(), is_deployed=False)
        return day

    @property
    def happenings(self) -> list[Happening]:
        return [happening for moment in self.moments for happening in moment.happenings]

    def _moment(self, size: int) -> None:
        self._busy.clear()
        moment, due = [], self._due
        self._due = []
        for subject, follow in due:
            if self._takes(subject):
                moment.append(follow())
            else:
                self._due.append((subject, follow))
        while len(moment) < size:
            act = self._chance.choice(_ACTS)
            if (happening := act(self)) is not None:
                moment.append(happening)
        self._over(moment)

    def _over(self, moment: list[Happening]) -> None:
        self.moments.append(Moment(moment, self.books.head))

    def _settle_up(self) -> None:
        """Plan the remaining follow-up deeds, and bring all tills back."""
        while self._due:
            self._moment(0)
        back = [self._walk(till) for till in sorted(self._away)]
        self._over(back)

    def _report(self, figures: Mapping[str, Amount], *, is_deployed: bool) -> None:
        outcome = Outcome("made")
        sent = Reported(figures, is_deployed)
        self._over([Happening(OFFICE, sent, outcome, repeats=1)])

    # -- Orders ----------------------------------------------------------------------------

    def _place(self) -> Happening | None:
        road = self._chance.choice((Road.REST, Road.REST, Road.SQL, Road.SQL, Road.BROADCAST))
        number = self._next()
        order_id = str(1000 + number) if road is Road.SQL else f"W-{number}"
        self._busy.add(order_id)
        content = guests.content(self._chance, order_id)
        if road is not Road.SQL:
            outcome = self.books.place(order_id, content)
            repeats = self._chance.choice((0, 0, 1))
            if road is Road.BROADCAST:
                return Happening(PLATFORM, Placed(order_id, content, road), outcome, repeats)
            deed = Placed(order_id, content, road, self._chance.choice((None, f"order-{number}")))
            is_lost = deed.key is not None and self._chance.random() < 0.3
            return Happening(PLATFORM, deed, outcome, repeats, is_lost)
        nobody = self._chance.random()
        if nobody < 0.1:
            return Happening(
                SHOP, Placed(order_id, content, road, None, True), Outcome("unchanged")
            )
        if nobody < 0.2:
            guest = {**content, "orderSource": "pos"}
            return Happening(SHOP, Placed(order_id, guest, road), Outcome("unchanged"))
        outcome = self.books.place(order_id, content, row=True)
        return Happening(SHOP, Placed(order_id, content, road), outcome)

    def _place_again(self) -> Happening | None:
        """Repeat an order, as a platform does after an interruption, or reuse an id."""
        if (found := self._order(lambda order: order.row is None)) is None:
            return None
        order_id, order = found
        content = {name: order.content[name] for name in CONTENT}
        if self._chance.random() < 0.5:
            content["customerName"] = self._chance.choice(NAMES)
        outcome = self.books.place(order_id, content, strictly=True)
        return Happening(PLATFORM, Placed(order_id, content, Road.REST), outcome)

    def _step(self) -> Happening | None:
        """Change the status of an order."""
        if (found := self._order(lambda order: order.status not in OVER)) is None:
            return None
        order_id, order = found
        place = WAY.index(order.status)
        status = self._chance.choice((*WAY[place + 1 : place + 3], WAY[-2]))
        members: dict[str, Any] = {"status": status}
        if self._chance.random() < 0.2:
            members["specialInstructions"] = self._chance.choice(WISHES)
        if order.row is not None:
            happening = self._by_sql(order_id, members)
            if self._chance.random() < 0.3:
                # Existing platforms write the row and call the broadcaster, which is one change.
                told = {"status": order.status}
                self._follow(order_id, lambda: self._by_call(order_id, told, Road.BROADCAST))
            return happening
        road = self._chance.choice((Road.REST, Road.REST, Road.BROADCAST))
        return self._by_call(order_id, members, road)

    def _step_back(self) -> Happening | None:
        """Plan a request of a platform that is too late, or that expects an older state of an order."""
        if (found := self._order(lambda order: True)) is None:
            return None
        order_id, order = found
        expected = self._chance.choice((None, order.version, order.version + 1))
        members = {"status": self._chance.choice(WAY[: WAY.index(order.status) + 1])}
        outcome = self.books.ask_change(order_id, members, expected)
        deed = Changed(order_id, members, Road.REST, expected)
        return Happening(PLATFORM, deed, outcome)

    def _by_sql(self, order_id: str, members: Mapping[str, Any]) -> Happening:
        """Write the row of an order, with the payment that the shop knows by now."""
        content = self.books.orders[order_id].content
        paid = {name: content[name] for name in ("paymentStatus", "paymentMethod")}
        members = {**paid, **members}
        outcome = self.books.change(order_id, members, row=True)
        return Happening(SHOP, Changed(order_id, members, Road.SQL), outcome)

    def _by_call(self, order_id: str, members: Mapping[str, Any], road: Road) -> Happening:
        if road is Road.BROADCAST:
            outcome = self.books.change(order_id, members)
            return Happening(PLATFORM, Changed(order_id, members, road), outcome)
        version = self.books.orders[order_id].version
        expected = self._chance.choice((None, version))
        outcome = self.books.ask_change(order_id, members, expected)
        return Happening(PLATFORM, Changed(order_id, members, road, expected), outcome)

    def _print(self) -> Happening | None:
        """Report printing of an order; sometimes again, or too late."""
        again = self._chance.random() < 0.4
        found = self._order(lambda order: not again or order.print_status in PRINTS[2:])
        if found is None:
            return None
        word = self._chance.choice(("received", "accepted", "printed", "printed", "failed"))
        status = word if word in ("printed", "failed") else "sent_to_pos"
        till = self._chance.choice((FRONT, OFFICE))
        over_socket = till == FRONT and word == status and self._chance.random() < 0.5
        outcome = self.books.printed(found[0], status)
        deed = Said(found[0], word, Road.SOCKET if over_socket else Road.REST)
        return Happening(till, deed, outcome, self._chance.choice((0, 0, 1)))

    # -- Payments --------------------------------------------------------------------------

    def _pay(self) -> Happening | None:
        """Pay at the counter: by card, in cash, or with a gift card that has enough on it."""
        if (found := self._order(_is_to_be_paid)) is None:
            return None
        order_id, order = found
        total = order.content["totalAmount"]
        card = self._card(lambda card: not card.is_blocked and card.balance >= total)
        if card is None or self._chance.random() < 0.4:
            return self._paid(order_id, self._chance.choice(("cash", "card")))
        self._follow(order_id, lambda: self._paid(order_id, "gift_card"))
        self._follow(order_id, lambda: self._earn(order_id))
        return self._moved(FRONT, CARDS, card.subject, "deduct", -total, order_id)

    def _paid(self, order_id: str, method: str) -> Happening:
        members = {"paymentStatus": "paid", "paymentMethod": method}
        outcome = self.books.change(order_id, members)
        self.books.printed(order_id, "sent_to_pos")
        deed = Said(order_id, "paid", Road.REST, method)
        return Happening(FRONT, deed, outcome, self._chance.choice((0, 1)))

    def _refund(self) -> Happening | None:
        """Refund an order, on the gift card if one has paid."""
        found = self._order(lambda order: order.is_paid and order.status in _REFUNDABLE)
        if found is None or self._chance.random() < 0.5:
            return None
        order_id, order = found
        if order.content["paymentMethod"] == "gift_card":
            card, line = self._payment(order_id)
            if not self._takes(card.subject):
                return None
            self._follow(order_id, lambda: self._refunded(order_id))
            assert line.key is not None
            return self._taken_back(PLATFORM, card, line.key)
        return self._refunded(order_id)

    def _refunded(self, order_id: str) -> Happening:
        members = {"status": "refunded"}
        if self.books.orders[order_id].row is not None:
            return self._by_sql(order_id, members)
        return self._by_call(order_id, members, Road.REST)

    def _payment(self, order_id: str) -> tuple[Account, Line]:
        return next(
            (card, line)
            for card in self.books.cards.values()
            for line in card.lines
            if (line.kind, line.order_id) == ("deduct", order_id)
        )

    # -- Cards and points ------------------------------------------------------------------

    def _sell(self) -> Happening | None:
        number, amount = f"GC-{self._next()}", Decimal(self._chance.choice((10, 25, 50, 100)))
        if self._chance.random() < 0.15 and (sold := self._card(lambda card: True)) is not None:
            number = sold.subject
        actor = self._chance.choice((PLATFORM, PLATFORM, SHOP))
        if actor == SHOP and number in self.books.cards:
            return None
        self._busy.add(number)
        key = f"sale-{self._next()}"
        kind = "activate" if actor == SHOP else "purchase"
        outcome = self.books.sell(number, amount, actor, key, kind)
        return self._honestly(actor, Sold(number, amount, key), outcome)

    def _spend(self) -> Happening | None:
        """Spend money without an order; sometimes more than there is."""
        if (card := self._card(lambda card: True)) is None:
            return None
        actor = self._chance.choice((FRONT, FRONT, OFFICE, PLATFORM, SHOP))
        if actor == SHOP and card.is_blocked:
            return None
        return self._moved(actor, CARDS, card.subject, "deduct", -self._price(3000))

    def _load(self) -> Happening | None:
        """Add money to a card by SQL."""
        if (card := self._card(lambda card: card.is_sold and not card.is_blocked)) is None:
            return None
        return self._moved(SHOP, CARDS, card.subject, "top_up", self._price(2000))

    def _block(self) -> Happening | None:
        blocked = self._chance.random() < 0.3
        if (card := self._card(lambda card: card.is_blocked is not blocked)) is None:
            return None
        outcome = self.books.block(card.subject, blocked=blocked)
        return Happening(SHOP, Blocked(card.subject, blocked), outcome)

    def _collect(self) -> Happening | None:
        """Add points for an order. A second till may repeat the call."""
        if (found := self._order(lambda order: order.is_paid)) is None:
            return None
        return self._earn(found[0])

    def _earn(self, order_id: str) -> Happening:
        order = self.books.orders[order_id]
        # Other deeds with this customer at this moment must be about other orders, and later.
        phone = order.content["customerPhone"]
        if not self._takes(phone):
            self._follow(order_id, lambda: self._earn(order_id))
            return self._look()
        points = int(order.content["totalAmount"])
        actor = self._chance.choice((FRONT, OFFICE, PLATFORM))
        return self._moved(actor, POINTS, phone, "add", points, order_id)

    def _redeem(self) -> Happening | None:
        phone = self._chance.choice(PHONES)
        if not self._takes(phone):
            return None
        actor = self._chance.choice((FRONT, OFFICE, PLATFORM))
        return self._moved(actor, POINTS, phone, "redeem", -self._chance.randrange(1, 40))

    def _adjust(self) -> Happening | None:
        """Correct the points of an account by SQL."""
        found = [name for name, one in sorted(self.books.customers.items()) if one.is_known]
        if not found or not self._takes(phone := self._chance.choice(found)):
            return None
        points = self._chance.choice((-5, 5, 10))
        return self._moved(SHOP, POINTS, phone, "adjust", points)

    def _reverse(self) -> Happening | None:
        """Reverse a movement that did not pay for an order."""
        ledger = self._chance.choice((CARDS, POINTS))
        accounts = self.books.accounts(ledger).items()
        found = [
            (account, line)
            for name, account in sorted(accounts)
            for line in account.lines
            if name not in self._busy and line.kind in _REVERSIBLE and line.order_id is None
        ]
        if not found:
            return None
        account, line = self._chance.choice(found)
        if ledger == CARDS and account.is_blocked:
            return None
        assert line.key is not None and self._takes(account.subject)
        if line.by == SHOP:
            return None if line.is_taken_back else self._taken_back(SHOP, account, line.key)
        actor = PLATFORM if line.by == PLATFORM else self._chance.choice((line.by, PLATFORM))
        return self._taken_back(actor, account, line.key)

    def _forestall(self) -> Happening | None:
        """Reverse a call that got no answer before the call itself arrives."""
        if (card := self._card(lambda card: True)) is None:
            return None
        key, amount = f"{OFFICE}-{self._next()}", self._price(500)
        number = card.subject

        def arrive() -> Happening:
            deed = Moved(CARDS, number, "deduct", -amount, key)
            outcome = self.books.move(CARDS, number, "deduct", -amount, OFFICE, key, None)
            return Happening(OFFICE, deed, outcome)

        self._follow(number, arrive)
        return self._taken_back(OFFICE, card, key)

    def _moved(
        self,
        actor: str,
        ledger: str,
        subject: str,
        kind: str,
        change: Amount,
        order: str | None = None,
    ) -> Happening:
        key = f"{actor}-{self._next()}"
        outcome = self.books.move(ledger, subject, kind, change, actor, key, order)
        return self._honestly(actor, Moved(ledger, subject, kind, change, key, order), outcome)

    def _taken_back(self, actor: str, account: Account, key: str) -> Happening:
        outcome = self.books.take_back(account.ledger, account.subject, actor, key)
        deed = TakenBack(account.ledger, account.subject, key)
        return Happening(actor, deed, outcome, 0 if actor == SHOP else self._chance.choice((0, 1)))

    def _honestly(self, actor: str, deed: Deed, outcome: Outcome) -> Happening:
        """Return a call that may be repeated after an answer, or without one."""
        if actor == SHOP:
            return Happening(actor, deed, outcome)
        repeats = self._chance.choice((0, 0, 1, 2))
        is_lost = outcome.code == "made" and self._chance.random() < 0.3
        return Happening(actor, deed, outcome, repeats, is_lost)

    # -- Everything else -------------------------------------------------------------------

    def _look(self) -> Happening:
        """Plan a read."""
        actor, method, path, body, status, code = self._chance.choice(MALFORMED)
        return Happening(actor, Malformed(method, path, body, status), Outcome(code))

    def _wander(self) -> Happening | None:
        """Let a till leave, but not before posd knows that it acknowledges."""
        till = self._chance.choice(WANDERERS)
        has_news = bool(self.moments) and self.moments[-1].head > 0
        return self._walk(till) if has_news and self._takes(till) else None

    def _walk(self, till: str) -> Happening:
        is_back = till in self._away
        self._away ^= {till}
        return Happening(till, Walked(is_back), Outcome("made"))

    def _price(self, most: int) -> Decimal:
        return Decimal(self._chance.randrange(1, most)).scaleb(-2)

    def _order(self, fits: Callable[[Order], bool]) -> tuple[str, Order] | None:
        """Return an order that is free at this moment."""
        found = [
            (name, order)
            for name, order in self.books.orders.items()
            if name not in self._busy and fits(order)
        ]
        if not found:
            return None
        chosen = self._chance.choice(found)
        self._busy.add(chosen[0])
        return chosen

    def _card(self, fits: Callable[[Account], bool]) -> Account | None:
        """Return a sold card that is free at this moment."""
        found = [
            card
            for name, card in self.books.cards.items()
            if name not in self._busy and card.is_known and fits(card)
        ]
        if not found:
            return None
        card = self._chance.choice(found)
        self._busy.add(card.subject)
        return card

    def _takes(self, subject: str) -> bool:
        """Return whether a subject is free at this moment."""
        is_free = subject not in self._busy
        self._busy.add(subject)
        return is_free

    def _follow(self, subject: str, follow: Callable[[], Happening]) -> None:
        self._due.append((subject, follow))

    def _next(self) -> int:
        self._count += 1
        return self._count


OVER: Final = ("completed", "cancelled", "refunded")
_REFUNDABLE: Final = WAY[:-1]
_REVERSIBLE: Final = ("purchase", "activate", "deduct", "top_up", "add", "redeem", "adjust")


def _is_to_be_paid(order: Order) -> bool:
    return not order.is_paid and order.status not in ("cancelled", "refunded")


_ACTS: Final[tuple[Callable[[ShopDay], Happening | None], ...]] = (
    *[ShopDay._place] * 5,
    *[ShopDay._step] * 6,
    *[ShopDay._print] * 4,
    *[ShopDay._pay] * 4,
    *[ShopDay._spend] * 3,
    *[ShopDay._collect] * 3,
    *[ShopDay._sell] * 2,
    *[ShopDay._redeem] * 2,
    *[ShopDay._reverse] * 3,
    *(ShopDay._place_again, ShopDay._step_back, ShopDay._refund, ShopDay._load, ShopDay._block),
    *(ShopDay._adjust, ShopDay._forestall, ShopDay._look, ShopDay._wander),
)
