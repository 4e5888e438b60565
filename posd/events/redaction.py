"""What tells who a customer is, found in JSON and taken out of it. Pure.

Where it stands is known for what posd itself writes; but shops publish members of their own, and tills
say what they like, so a telephone number or an e-mail address is looked for in every text, however it is
spelled. Once something is about that customer, all that tells who that is goes: known members, objects
that are about people whole, and each text that names the number or the address. The rest stays as it is,
member by member and in its order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Final

from attrs import frozen

from posd.events import phones

KEPT_MEMBERS: Final = frozenset(
    (
        *("orderid", "ordernumber", "id", "cardnumber", "menuitemid", "variantid", "addonid"),
        *("type", "status", "previousstatus", "paymentstatus", "paymentmethod", "ordertype"),
        *("ordersource", "transactiontype", "currency", "createdat", "updatedat", "scheduledfor"),
        *("scheduledtime", "purchasedat", "expirydate", "streamid", "timestamp"),
    )
)
"""Members, as `normalised_name` has them, whose texts stay: what things are called, what became of them
and when.
They are those of `pos_only_erased()` in sql/main/011_erasure.sql, which refuses the rest; a test compares."""

PERSONAL_MEMBERS: Final = frozenset(
    (
        *("customer", "customername", "customerphone", "customeremail", "customeraddress"),
        *("contact", "phone", "phonenumber", "mobile", "email", "address", "deliveryaddress"),
        *("billingaddress", "shippingaddress", "specialinstructions", "notes", "note"),
        *("deliveryinstructions", "deliverynotes", "comment", "comments"),
        *("purchasedby", "recipient", "recipientname", "recipientemail", "recipientphone"),
    )
)
"""Members that tell who somebody is, or are what somebody wrote; with all that is below them."""

_SPARSE: Final = frozenset(("items", "selectedaddons"))
"""In their objects no member is null: tills that were there before posd do not expect it."""

_PHONE_MEMBER: Final = re.compile(r"phone|mobile|^tel")
_LAST_DIGITS: Final = 6
_NO_DIGITS: Final = bytes(each for each in range(128) if not 48 <= each <= 57)
_AT: Final = re.compile("[@\N{FULLWIDTH COMMERCIAL AT}\N{SMALL COMMERCIAL AT}]")
_EMAIL: Final = re.compile(r"[^\s<>()\[\],;:\"']+@[^\s<>()\[\],;:\"']+")


@frozen
class ErasedPerson:
    """Whom to forget: numbers in E.164, addresses as `email` has them, and orders that were theirs.

    `region` is where a number without a country code is.
    """

    region: str
    phones: frozenset[str] = frozenset()
    emails: frozenset[str] = frozenset()
    orders: frozenset[str] = frozenset()

    def may_be_in(self, raw: str) -> bool:
        """Whether JSON text has to be read: false only if it surely says nothing of the customer.

        Most texts do not, and to find that out without reading them takes a tenth of the time.
        """
        if not raw.isascii() or "\\" in raw:
            return True
        if any(each in raw for each in self.orders) or self._may_have_number(raw):
            return True
        return bool(self.emails) and any(each in raw.lower() for each in self.emails)

    def is_named_in(self, text: str) -> bool:
        """Whether a text has the number or the address, alone or among others."""
        if self.emails and _AT.search(text) and not self.emails.isdisjoint(_emails(text)):
            return True
        return self._may_have_number(text) and not self.phones.isdisjoint(
            _phones(text, self.region)
        )

    def _may_have_number(self, text: str) -> bool:
        """Whether the last digits of a number are in a text, which no way of writing it changes."""
        if not self.phones:
            return False
        digits = _digits(text)
        return any(each[-_LAST_DIGITS:] in digits for each in self.phones)

    def is_about(self, value: object) -> bool:
        """Whether something is about this customer: it names them, or an order that was theirs."""
        return not self.orders.isdisjoint(order_ids(value)) or any(
            self.is_named_in(text) for text in _texts(value)
        )


def normalised_name(name: str) -> str:
    """A member's name in one spelling: `customerName` and `customer_name` are one."""
    return name.replace("_", "").lower()


def email(text: str) -> str:
    """An e-mail address in one spelling. Capitals make no difference, nor how letters are composed."""
    return unicodedata.normalize("NFKC", text).strip().casefold()


def order_ids(value: object) -> set[str]:
    """The orders that something names."""
    return {
        str(each) for name, each in _scalars(value, "") if name == "orderid" and each is not None
    }


def redact(value: object, person: ErasedPerson) -> object:
    """The same without what tells who the customer is: null, or left out where nulls are not expected."""
    return _redact(value, "", person, is_personal=False)


def _redact(value: object, name: str, person: ErasedPerson, *, is_personal: bool) -> object:
    if isinstance(value, Mapping):
        return _redact_object(value, person, is_personal=is_personal, sparse=name in _SPARSE)
    if isinstance(value, list | tuple):
        return [_redact(each, name, person, is_personal=is_personal) for each in value]
    if isinstance(value, str):
        return (
            None
            if name not in KEPT_MEMBERS and (is_personal or person.is_named_in(value))
            else value
        )
    if _is_phone_number(name, value) and (is_personal or person.is_named_in(str(value))):
        return None
    return value


def _redact_object(
    value: Mapping[str, object], person: ErasedPerson, *, is_personal: bool, sparse: bool
) -> dict[str, object]:
    kept: dict[str, object] = {}
    for member, before in value.items():
        name = normalised_name(member)
        after = _redact(before, name, person, is_personal=is_personal or name in PERSONAL_MEMBERS)
        if not sparse or after is not None or before is None:
            kept[member] = after
    return kept


def _texts(value: object) -> Iterator[str]:
    for name, each in _scalars(value, ""):
        if isinstance(each, str):
            if name not in KEPT_MEMBERS:
                yield each
        elif _is_phone_number(name, each):
            yield str(each)


def _scalars(value: object, name: str) -> Iterator[tuple[str, object]]:
    """What is no object and no array, with the name of the member that it is in."""
    if isinstance(value, Mapping):
        for member, each in value.items():
            yield from _scalars(each, normalised_name(member))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _scalars(each, name)
    else:
        yield name, value


def _is_phone_number(name: str, value: object) -> bool:
    """Whether a number is not for counting."""
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    return is_number and _PHONE_MEMBER.search(name) is not None


def _digits(text: str) -> str:
    """The decimal digits of a text, of whichever script, as those of ASCII."""
    if text.isascii():
        return text.encode().translate(None, _NO_DIGITS).decode()
    return "".join(str(int(each)) for each in text if each.isdecimal())


@lru_cache(maxsize=8192)
def _phones(text: str, region: str) -> frozenset[str]:
    return phones.numbers_in(text, region)


def _emails(text: str) -> Iterable[str]:
    """The addresses in a text; whoever ends a sentence with one is understood."""
    return {
        email(each).strip(".!?") for each in _EMAIL.findall(unicodedata.normalize("NFKC", text))
    }
