"""Rows about calls of tills: open orders and gift cards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from bench.loader import Loader
from bench.rows import WARM_SECONDS, Figures, Row, Target, costs, named
from bench.subjects import Subject
from bench.world import PLATFORM_KEY, TILL_KEY, World, request

_CARDS: Final = 1000
_BALANCE: Final = 90_000.0
_ORDERS: Final = 50
_POSTERS: Final = 8
_TENANT: Final = 2
"""A tenant that no other row publishes to."""
_ITEMS: Final = [
    {"name": "Naan with garlic", "quantity": 2, "price": 3.5},
    {"name": "Lamb rogan josh", "quantity": 1, "price": 11.25},
    {"name": "Mango lassi", "quantity": 3, "price": 1.75},
]


def _card(number: int) -> str:
    return f"CARD-{number:04}"


def _path(number: int) -> str:
    return f"/api/shop-{_TENANT}/gift-cards/{_card(number)}"


def _order(number: int) -> dict[str, object]:
    return {
        "orderId": f"W-{number}",
        "totalAmount": 23.5,
        "customerName": "Ines Moor",
        "customerPhone": "+447700900123",
        "items": _ITEMS,
    }


def _snapshot(number: int) -> dict[str, object]:
    """Return the order as posd answers it. The peers store and answer this text."""
    unknown = "customerEmail paymentMethod voucherCode specialInstructions notes deliveryAddress"
    return {
        **_order(number),
        **dict.fromkeys(f"{unknown} scheduledFor scheduledTime".split()),
        "items": [{"id": line, **item} for line, item in enumerate(_ITEMS, 1)],
        "orderNumber": f"W-{number}",
        "orderType": "pickup",
        "orderSource": "online",
        "status": "confirmed",
        "paymentStatus": "pending",
        "currency": "GBP",
        "createdAt": "2026-11-30T20:10:54.246Z",
        "version": 1,
        "id": f"W-{number}",
        "total": 23.5,
        "printStatus": "pending",
    }


def _stock(subject: Subject, loader: Loader) -> None:
    """Create the cards and orders in the subject's database, if they are missing."""
    if subject.name == "posd":
        _stock_posd(subject.world, loader)
    else:
        _stock_peers(subject.world)


def _stock_posd(world: World, loader: Loader) -> None:
    if world.shop.query(f"SELECT 1 FROM dinedesk_shop_{_TENANT}.gift_cards LIMIT 1"):
        return
    api = f"/api/shop-{_TENANT}"
    cards = [{"cardNumber": _card(number), "amount": _BALANCE} for number in range(_CARDS)]
    selling = [request("POST", f"{api}/gift-cards", PLATFORM_KEY, card) for card in cards]
    placing = [request("POST", f"{api}/orders", PLATFORM_KEY, _order(n)) for n in range(_ORDERS)]
    loader.load(selling + placing, 0, posters=_POSTERS)


def _stock_peers(world: World) -> None:
    if world.peers_query("SELECT 1 FROM gift_cards LIMIT 1"):
        return
    world.peers_query(
        "INSERT INTO gift_cards (tenant, card_number, balance) SELECT %s, number, %s"
        " FROM unnest(%s) AS number",
        (_TENANT, _BALANCE, [_card(number) for number in range(_CARDS)]),
    )
    world.peers_query(
        "INSERT INTO orders (tenant, order_id, snapshot)"
        " SELECT %s, snapshot ->> 'orderId', snapshot FROM unnest(%s::json[]) AS snapshot",
        (_TENANT, [json.dumps(_snapshot(number)) for number in range(_ORDERS)]),
    )


def _row(name: str, title: str, requests: Callable[[], Sequence[bytes]], *, tills: int = 0) -> Row:
    """A row: eight tills with one key, each with a connection, repeat calls without a pause."""
    sent = requests()

    def prepare(subject: Subject, loader: Loader) -> None:
        _stock(subject, loader)
        if tills:
            loader.open(named([_TENANT], tills))
        loader.load(sent, WARM_SECONDS, posters=_POSTERS, deliveries=tills)

    def measure(subject: Subject, loader: Loader, seconds: float) -> Figures:
        result, used = costs(
            subject, lambda: loader.load(sent, seconds, posters=_POSTERS, deliveries=tills)
        )
        return {
            "calls/s": result["in_time"] / seconds,
            "p50 ms": result["answer_ms"]["p50"],
            "p99 ms": result["answer_ms"]["p99"],
            "server µs": used["server_us"] / result["requests"],
            "PostgreSQL µs": used["postgres_us"] / result["requests"],
            "client busy": used["client_busy"],
        }

    return Row(
        name, title, ("posd", "shop-pool"), {"calls/s": Target(0.7, "shop-pool")}, prepare, measure
    )


ROWS: Final = (
    _row(
        "pending",
        f"`orders/pending` of {_ORDERS}, 8 callers",
        lambda: [request("GET", f"/api/shop-{_TENANT}/orders/pending", TILL_KEY)],
    ),
    _row(
        "balance",
        f"balance of {_CARDS:,} gift cards, 8 callers",
        lambda: [request("GET", f"{_path(n)}/balance", TILL_KEY) for n in range(_CARDS)],
    ),
    _row(
        "deduct",
        f"deduct from {_CARDS:,} gift cards, 8 callers, one till that is told",
        lambda: [
            request("POST", f"{_path(n)}/deduct", TILL_KEY, {"amount": 0.01}, repeatable=True)
            for n in range(_CARDS)
        ],
        tills=1,
    ),
)
