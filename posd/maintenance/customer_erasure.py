"""Erase the data of one customer of one tenant: find, erase, and search again until nothing is found.

`posd.events.redaction` decides which documents are about the customer, and `posd.store.erasure` reads and
writes them. An order that names the customer once belongs to the customer: every document about that order
is erased, even if it contains another telephone number. The number of a loyalty account of the customer
counts as a number of the customer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final
from urllib.parse import unquote

from attrs import define, evolve, field

from posd.database.reconnecting import Executor
from posd.errors import Busy, InvalidMessage
from posd.events import redaction as erasure
from posd.events.redaction import ErasedPerson
from posd.protocol import jsontext
from posd.store import erasure as store
from posd.store.erasure import CustomerDocument, ErasureCounts, PointsAccount
from posd.values import Tenant

_PLACES: Final[tuple[store.DocumentPlace, ...]] = (
    *("order", "event", "message", "outbox", "answer", "refusal"),
)
_ORDERS: Final = _PLACES[:4]
_ROUNDS: Final = 5

Progress = Callable[[int], None]
"""A callback with the number of documents read since the last call."""


@define
class CustomerData:
    """The data about a customer: the redacted texts by place and key, gift cards, and loyalty accounts.

    `person` includes the order ids that were found. `unreadable` counts texts that posd cannot parse as
    JSON and that may contain data of the customer.
    """

    person: ErasedPerson
    texts: dict[store.Part, list[tuple[str, str]]] = field(factory=dict)
    cards: list[str] = field(factory=list)
    accounts: list[PointsAccount] = field(factory=list)
    unreadable: int = 0

    def __bool__(self) -> bool:
        return bool(self.texts or self.cards or self.accounts)

    @property
    def counts(self) -> ErasureCounts:
        """The number of found documents, cards and accounts."""
        keys = {part: {key for key, _ in texts} for part, texts in self.texts.items()}
        return _counts(keys, len(self.cards), len(self.accounts))

    def add(self, part: store.Part, key: str, text: str) -> None:
        """Add the redacted text of a document."""
        self.texts.setdefault(part, []).append((key, text))


async def find(
    executor: Executor,
    tenant: Tenant,
    person: ErasedPerson,
    progress: Progress = lambda count: None,
) -> CustomerData:
    """Find everything that posd has stored about the customer."""
    cards, accounts = await store.load_people(executor, tenant)
    theirs = [
        each
        for each in accounts
        if person.is_named_in(each.phone) or person.is_named_in(each.email or "")
    ]
    person = evolve(person, phones=person.phones | {each.phone for each in theirs})
    orders = set(person.orders)
    for place in _ORDERS:
        async for document in _documents(executor, tenant, place):
            progress(1)
            if person.may_be_in(document.text):
                value = _decode(document.text)
                if value is not None and person.is_about(value):
                    orders |= erasure.order_ids(value)
    found = CustomerData(evolve(person, orders=frozenset(orders)))
    found.accounts = theirs
    found.cards = [
        each.number for each in cards if any(person.is_named_in(name or "") for name in each.people)
    ]
    for place in _PLACES:
        async for document in _documents(executor, tenant, place):
            progress(1)
            _inspect(document, place, found)
    return found


async def erase(
    executor: Executor,
    tenant: Tenant,
    found: CustomerData,
    request: str,
    progress: Progress = lambda count: None,
) -> ErasureCounts:
    """Erase the found data, and data that was written since. Return how much was erased.

    Records the erasure with the text `request`, also if the erasure fails. Raises `Busy` if data of the
    customer is still found after several rounds.
    """
    keys: dict[store.Part, set[str]] = {}
    cards = accounts = 0
    try:
        for _ in range(_ROUNDS):
            for part, texts in found.texts.items():
                async for redact in store.erase(executor, tenant, part, texts):
                    keys.setdefault(part, set()).update(redact)
            people = await store.erase_people(
                executor, tenant, found.cards, [each.id for each in found.accounts]
            )
            cards, accounts = cards + people[0], accounts + people[1]
            found = await find(executor, tenant, found.person, progress)
            if not found:
                return _counts(keys, cards, accounts)
    finally:
        await store.record_erasure(executor, tenant, request, _counts(keys, cards, accounts))
    raise Busy(
        "New data of the customer was written during each round of the erasure. Try again later."
    )


async def _documents(
    executor: Executor, tenant: Tenant, place: store.DocumentPlace
) -> AsyncIterator[CustomerDocument]:
    found, after = await store.next_documents(executor, tenant, place)
    while found:
        for each in found:
            yield each
        found, after = await store.next_documents(executor, tenant, place, after)


def _inspect(document: CustomerDocument, place: store.DocumentPlace, found: CustomerData) -> None:
    """Add the redacted text of a document to `found`, if the document is about the customer."""
    person = found.person
    if document.operation is not None and _names_customer(document.operation, person):
        found.add("call", document.key, "")
        return
    if not (person.may_be_in(document.text) or person.may_be_in(document.extra_members or "")):
        return
    value = _decode(document.text)
    if value is None:
        found.unreadable += 1
        return
    extra_members = None if document.extra_members is None else _decode(document.extra_members)
    if not (person.is_about(value) or person.is_about(extra_members)):
        return
    parts: tuple[tuple[store.Part, object], ...] = ((place, value), ("beside", extra_members))
    for part, was in parts:
        now = erasure.redact(was, person)
        if now != was:
            found.add(part, document.key, jsontext.encode(now).decode())


def _names_customer(operation: str, person: ErasedPerson) -> bool:
    """Whether a request line names the customer: `POST /api/kitchen/loyalty/%2B447700900123/redeem`."""
    return any(person.is_named_in(unquote(each)) for each in operation.split("/"))


def _decode(text: str) -> object:
    """Parse a text as JSON. Return None if that fails."""
    try:
        return jsontext.decode(text)
    except InvalidMessage:
        return None


def _counts(keys: Mapping[store.Part, set[str]], cards: int, accounts: int) -> ErasureCounts:
    """Count documents. An event and its extra members are one document.

    Messages, outbox rows and refusals count as events.
    """
    none: set[str] = set()
    return ErasureCounts(
        events=len(keys.get("event", none) | keys.get("beside", none))
        + len(keys.get("message", none))
        + len(keys.get("outbox", none))
        + len(keys.get("refusal", none)),
        orders=len(keys.get("order", none)),
        answers=len(keys.get("answer", none)) + len(keys.get("call", none)),
        gift_cards=cards,
        accounts=accounts,
    )
