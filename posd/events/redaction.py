"""Finds personal data of a customer in JSON, and removes it. The functions do no I/O.

posd knows the members that it writes itself. But shops publish other members, and tills send free text. So
all texts are searched for the telephone number or e-mail address, in any spelling. If a value is about the
customer, all personal data in it is removed: the known members, whole objects about people, and each text
with the number or address. The other members and their order are unchanged.
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
"""The members whose texts are kept, as `normalised_name` spells them: ids, types, statuses and times.

`pos_only_erased()` in sql/main/011_erasure.sql has the same list, and refuses other changes. A test compares
the lists.
"""

PERSONAL_MEMBERS: Final = frozenset(
    (
        *("customer", "customername", "customerphone", "customeremail", "customeraddress"),
        *("contact", "phone", "phonenumber", "mobile", "email", "address", "deliveryaddress"),
        *("billingaddress", "shippingaddress", "specialinstructions", "notes", "note"),
        *("deliveryinstructions", "deliverynotes", "comment", "comments"),
        *("purchasedby", "recipient", "recipientname", "recipientemail", "recipientphone"),
    )
)
"""The members with personal data or free text. Everything nested in them is personal too."""

_SPARSE: Final = frozenset(("items", "selectedaddons"))
"""The members whose objects have no nulls, because deployed tills do not expect nulls there."""

_PHONE_MEMBER: Final = re.compile(r"phone|mobile|^tel")
_LAST_DIGITS: Final = 6
_NO_DIGITS: Final = bytes(each for each in range(128) if not 48 <= each <= 57)
_AT: Final = re.compile("[@\N{FULLWIDTH COMMERCIAL AT}\N{SMALL COMMERCIAL AT}]")
_EMAIL: Final = re.compile(r"[^\s<>()\[\],;:\"']+@[^\s<>()\[\],;:\"']+")


@frozen
class ErasedPerson:
    """The customer whose data is erased.

    `phones`: telephone numbers in E.164. `emails`: addresses as `email` returns them. `orders`: ids of the
    customer's orders. `region`: the region of numbers without a country code.
    """

    region: str
    phones: frozenset[str] = frozenset()
    emails: frozenset[str] = frozenset()
    orders: frozenset[str] = frozenset()

    def may_be_in(self, raw: str) -> bool:
        """Whether JSON text may be about the customer. False is certain.

        Most texts are not about the customer. This test takes a tenth of the time of decoding the text.
        """
        if not raw.isascii() or "\\" in raw:
            return True
        if any(each in raw for each in self.orders) or self._may_have_number(raw):
            return True
        return bool(self.emails) and any(each in raw.lower() for each in self.emails)

    def is_named_in(self, text: str) -> bool:
        """Whether a text contains a number or an address of the customer."""
        if self.emails and _AT.search(text) and not self.emails.isdisjoint(_emails(text)):
            return True
        return self._may_have_number(text) and not self.phones.isdisjoint(
            _phones(text, self.region)
        )

    def _may_have_number(self, text: str) -> bool:
        """Whether a text contains the last six digits of a number. They are the same in all spellings."""
        if not self.phones:
            return False
        digits = _digits(text)
        return any(each[-_LAST_DIGITS:] in digits for each in self.phones)

    def is_about(self, value: object) -> bool:
        """Whether a JSON value names the customer or an order of the customer."""
        return not self.orders.isdisjoint(order_ids(value)) or any(
            self.is_named_in(text) for text in _texts(value)
        )


def normalised_name(name: str) -> str:
    """Return a member's name in one spelling: `customername` for `customerName` and `customer_name`."""
    return name.replace("_", "").lower()


def email(text: str) -> str:
    """Return an e-mail address in one spelling: NFKC, without white space at the ends, and casefolded."""
    return unicodedata.normalize("NFKC", text).strip().casefold()


def order_ids(value: object) -> set[str]:
    """Return the ids in the `orderId` members of a JSON value."""
    return {
        str(each) for name, each in _scalars(value, "") if name == "orderid" and each is not None
    }


def redact(value: object, person: ErasedPerson) -> object:
    """Return a JSON value without personal data. Removed members are null, or absent in `_SPARSE` objects."""
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
    """Yield the scalars of a JSON value, each with the normalised name of its member."""
    if isinstance(value, Mapping):
        for member, each in value.items():
            yield from _scalars(each, normalised_name(member))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _scalars(each, name)
    else:
        yield name, value


def _is_phone_number(name: str, value: object) -> bool:
    """Whether a JSON number is the value of a member for telephone numbers."""
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    return is_number and _PHONE_MEMBER.search(name) is not None


def _digits(text: str) -> str:
    """Return the decimal digits of a text, of all scripts, as ASCII digits."""
    if text.isascii():
        return text.encode().translate(None, _NO_DIGITS).decode()
    return "".join(str(int(each)) for each in text if each.isdecimal())


@lru_cache(maxsize=8192)
def _phones(text: str, region: str) -> frozenset[str]:
    return phones.numbers_in(text, region)


def _emails(text: str) -> Iterable[str]:
    """Return the e-mail addresses in a text, without the punctuation at the end of a sentence."""
    return {
        email(each).strip(".!?") for each in _EMAIL.findall(unicodedata.normalize("NFKC", text))
    }
