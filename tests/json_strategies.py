"""Hypothesis strategies for arbitrary JSON, and for orders made of it."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
"""Texts as they are after decoding, without surrogates and NUL."""

decimals = st.builds(
    lambda sign, digits, exponent: Decimal((sign, digits, exponent)),
    st.integers(0, 1),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(-20, 0),
)

scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | decimals | texts

values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
"""Any JSON."""

amounts = (
    st.decimals(-1000, 1000, places=2)
    | st.integers(-1000, 1000)
    | st.decimals(0, 1000, places=3).map(str)
    | st.sampled_from(["", " 7.50 ", "£5", "1e2", "12,50"])
)
dates = (
    st.datetimes().map(str)
    | st.dates().map(str)
    | st.integers(10**9, 2 * 10**9)
    | st.sampled_from(["2026-11-22T18:30+01:00", "2026-11-22T10:00:00Z", "", "ASAP", "18:30"])
)
words = st.sampled_from(["online", "Online", "confirmed", "Dine-In", "delivery", "paid", "ready"])

_fitting: dict[str, st.SearchStrategy[object]] = {
    "Amount": amounts,
    "Fee": amounts,
    "total": amounts,
    "tax": amounts,
    "price": amounts,
    "quantity": st.integers(-3, 10) | st.sampled_from(["2", Decimal("2.0"), "1.5", 10**12]),
    "At": dates,
    "scheduled": dates,
    "order": words,
    "tatus": words,
}
"""Values for members with such a part in their names."""


def _object(names: str) -> st.SearchStrategy[dict[str, object]]:
    """An object with some of `names`. Each value may or may not fit its name."""
    pairs = []
    for name in names.split():
        fitting = [strategy for part, strategy in _fitting.items() if part in name]
        pairs.append(st.tuples(st.just(name), st.one_of(*fitting, texts, values)))
    return st.lists(st.one_of(pairs), max_size=6).map(dict)


_ADDON = "addon_id addonId id optionId name price quantity"
_ITEM = """id menuItemId menu_item_id name displayName variantId variant_name price quantity
    selectedAddons selected_addons specialInstructions special_instructions cost"""
_ORDER = """orderId order_id id orderNumber order_number customerName customer_phone orderType
    orderSource status total total_amount totalAmount deliveryFee discount discountAmount tax
    paymentStatus currency items notes specialInstructions deliveryAddress address scheduledFor
    scheduledTime scheduled_for createdAt created_at version previousStatus updatedAt unreadable
    scheduledText extra"""

_fitting["elected"] = st.lists(_object(_ADDON) | values, max_size=2)
_fitting["items"] = st.lists(_object(_ITEM) | values, max_size=3)
order_data = _object(_ORDER)
"""Any object with members of an order and values of every kind."""

named_orders = st.builds(
    lambda order, order_id: {**order, "orderId": order_id},
    order_data,
    st.integers(1, 10**12) | st.text("AB-0123", min_size=1, max_size=8),
)
"""The same with a usable id."""
