"""Rows about events: fan-out, publishing by REST, and the delay to the till."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final

import psycopg2

from bench.loader import Loader
from bench.rows import WARM_SECONDS, Figures, Row, Target, costs, named, nothing
from bench.subjects import Subject
from bench.world import CROWDED, opening, publishing

_PLACE: Final = "INSERT INTO dinedesk_{}.orders (customer_name, total_amount) VALUES (%s, 5)"
_BACKLOG: Final = 20_000
_QUIET_TENANT: Final = 3
"""A tenant that only this row publishes to."""
_SIZES: Final = {"200 B": 50, "1 KB": 820, "10 KB": 10_000, "100 KB": 100_000}
"""The lengths of the text in an event. The message without the text has about 180 bytes."""


def _waves(
    tenant: int, tills: int, events: int
) -> tuple[Callable[[Subject, Loader], None], Callable[[Subject, Loader, float], Figures]]:
    """Measure messages per second. A request is sent when all tills have the events of the previous one."""
    requests = [publishing(tenant, None if events == 1 else events)]

    def prepare(subject: Subject, loader: Loader) -> None:
        loader.open(named([tenant], tills))
        loader.waves(requests, WARM_SECONDS, events)

    def measure(subject: Subject, loader: Loader, seconds: float) -> Figures:
        result, used = costs(subject, lambda: loader.waves(requests, seconds, events))
        messages = result["messages"]
        return {
            "messages/s": messages / result["seconds"],
            "p50 ms": result["latency_ms"]["p50"],
            "p99 ms": result["latency_ms"]["p99"],
            "server µs/message": used["server_us"] / messages,
            "PostgreSQL µs/message": used["postgres_us"] / messages,
            "client µs/message": used["client_us"] / messages,
            "client busy": used["client_busy"],
        }

    return prepare, measure


def _publish(
    tenants: Sequence[int], tills: int, posters: int, rate: float = 0.0, batch: int | None = None
) -> tuple[Callable[[Subject, Loader], None], Callable[[Subject, Loader, float], Figures]]:
    """Measure events per second by REST to `tills` of each tenant, and the delays of answers and messages."""
    requests = [publishing(tenant, batch) for tenant in tenants]
    size = batch or 1

    def load(loader: Loader, seconds: float) -> dict[str, Any]:
        return loader.load(requests, seconds, posters=posters, rate=rate, deliveries=size * tills)

    def prepare(subject: Subject, loader: Loader) -> None:
        loader.open(named(tenants, tills))
        load(loader, WARM_SECONDS)

    def measure(subject: Subject, loader: Loader, seconds: float) -> Figures:
        result, used = costs(subject, lambda: load(loader, seconds))
        events = size * result["requests"]
        return {
            "events/s": size * result["in_time"] / seconds,
            "answer p50 ms": result["answer_ms"]["p50"],
            "answer p99 ms": result["answer_ms"]["p99"],
            "p50 ms": result["latency_ms"]["p50"],
            "p99 ms": result["latency_ms"]["p99"],
            "server µs/event": used["server_us"] / events,
            "PostgreSQL µs/event": used["postgres_us"] / events,
            "client busy": used["client_busy"],
        }

    return prepare, measure


def _publish_row(
    name: str,
    title: str,
    targets: Mapping[str, Target],
    *,
    subjects: Sequence[str],
    seconds: float = 1.5,
    full_only: bool = False,
    **how: Any,
) -> Row:
    prepare, measure = _publish(**how)
    return Row(name, title, subjects, targets, prepare, measure, seconds, full_only=full_only)


def _commits(
    tenants: Sequence[int], tills: int, rate: float
) -> tuple[Callable[[Subject, Loader], None], Callable[[Subject, Loader, float], Figures]]:
    """Measure the delay to the tills of orders that a shop writes by SQL."""

    def place(subject: Subject, loader: Loader, seconds: float) -> dict[str, Any]:
        orders = int(rate * seconds)
        shop = threading.Thread(target=_place, args=(subject.world.shop.dsn, tenants, orders, rate))
        shop.start()
        result = loader.wait(orders * tills, seconds + 30)
        shop.join()
        return result

    def prepare(subject: Subject, loader: Loader) -> None:
        loader.open(named(tenants, tills))
        place(subject, loader, WARM_SECONDS)

    def measure(subject: Subject, loader: Loader, seconds: float) -> Figures:
        result, used = costs(subject, lambda: place(subject, loader, seconds))
        orders = result["messages"] / tills
        return {
            "p50 ms": result["latency_ms"]["p50"],
            "p99 ms": result["latency_ms"]["p99"],
            "max ms": result["latency_ms"]["max"],
            "server µs/order": used["server_us"] / orders,
            "PostgreSQL µs/order": used["postgres_us"] / orders,
        }

    return prepare, measure


def _commit_row(
    name: str, title: str, targets: Mapping[str, Target], *, full_only: bool = False, **how: Any
) -> Row:
    prepare, measure = _commits(**how)
    return Row(name, title, ("posd",), targets, prepare, measure, 3.0, full_only=full_only)


def _place(dsn: str, tenants: Sequence[int], orders: int, rate: float) -> None:
    """Insert orders at a rate, in autocommit mode. Each has the time at which its statement is sent."""
    # The load client must begin to count before the first order.
    due = time.monotonic() + 0.2
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for number in range(orders):
            time.sleep(max(0.0, due - time.monotonic()))
            place = _PLACE.format(f"shop_{tenants[number % len(tenants)]}")
            cursor.execute(place, (f"{time.monotonic_ns():019d}",))
            due += 1 / rate


def _publish_backlog(subject: Subject, loader: Loader) -> None:
    loader.load([publishing(_QUIET_TENANT, 100)] * (_BACKLOG // 100), 0, posters=2)


def _backlog(subject: Subject, loader: Loader, seconds: float) -> Figures:
    """Measure events per second to one till that reconnects after it has missed many events."""
    ((head,),) = subject.world.shop.query(
        "SELECT last_seq FROM dinedesk_main.pos_heads JOIN dinedesk_main.tenants AS t"
        " ON t.id = tenant_id WHERE slug = %s",
        (f"shop-{_QUIET_TENANT}",),
    )
    result, used = costs(
        subject,
        lambda: loader.open([opening(_QUIET_TENANT, "AWAY", head - _BACKLOG)], missed=_BACKLOG),
    )
    loader.close()
    return {
        "events/s": _BACKLOG / result["seconds"],
        "server µs/event": used["server_us"] / _BACKLOG,
        "PostgreSQL µs/event": used["postgres_us"] / _BACKLOG,
        "client busy": used["client_busy"],
    }


def _growth(subject: Subject, loader: Loader, seconds: float) -> Figures:
    """Measure events per second of all tenants in turn, and of one tenant, without tills."""
    found = {}
    for name, tenants in (("one", 1), ("all", subject.world.tenants)):
        requests = [publishing(1 + n % tenants) for n in range(max(tenants, 32))]
        # Warm up: posd looks up a key for each tenant and caches it for ten seconds.
        loader.load(requests, 0, posters=32)
        result, used = costs(subject, partial(loader.load, requests, seconds, posters=32))
        found[f"{name} events/s"] = result["in_time"] / seconds
        found[f"{name} server µs"] = used["server_us"] / result["requests"]
        found[f"{name} PostgreSQL µs"] = used["postgres_us"] / result["requests"]
    return {"all / one": found["all events/s"] / found["one events/s"], **found}


def _open_ten(subject: Subject, loader: Loader) -> None:
    loader.open(named([1], 10))


def _sizes(subject: Subject, loader: Loader, seconds: float) -> Figures:
    """Measure events per second by REST to ten tills, and the cost of an event, for several sizes."""
    found = {}
    for name, size in _SIZES.items():
        requests = [publishing(1, text_bytes=size)]
        loader.load(requests, 0.2, posters=32, deliveries=10)
        result, used = costs(
            subject, partial(loader.load, requests, seconds, posters=32, deliveries=10)
        )
        found[f"{name} events/s"] = result["in_time"] / seconds
        found[f"{name} server µs"] = used["server_us"] / result["requests"]
        found[f"{name} PostgreSQL µs"] = used["postgres_us"] / result["requests"]
    return found


ROWS: Final = (
    Row(
        "fanout",
        "fan-out, 1,000 named tills of one tenant, one event at a time",
        ("posd", "node-ws", "shop-pool", "deployed", "autobahn", "floor"),
        {"messages/s": Target(1.0, "node-ws")},
        *_waves(CROWDED, tills=1000, events=1),
    ),
    Row(
        "burst",
        "bursts, 100 named tills, `events` of 8 outstanding",
        ("posd", "shop-pool"),
        {"messages/s": Target(1.3, "shop-pool")},
        *_waves(1, tills=100, events=8),
    ),
    Row(
        "sparse",
        "processor time a message, 100 named tills, one event at a time, publishing included",
        ("posd", "shop-pool", "autobahn"),
        {"server µs/message": Target(1.25, "shop-pool", at_most=True)},
        *_waves(1, tills=100, events=1),
    ),
    _publish_row(
        "publish",
        "durable publish by REST, 10 tills, 32 posters",
        {"events/s": Target(0.8, "shop-pool")},
        subjects=("posd", "shop-pool", "deployed"),
        tenants=[1],
        tills=10,
        posters=32,
    ),
    _publish_row(
        "batch",
        "`events` of 100, over 100 tenants with a till each, 8 posters",
        {"events/s": Target(0.6, "shop-pool")},
        subjects=("posd", "shop-pool"),
        tenants=range(1, 101),
        tills=1,
        posters=8,
        batch=100,
    ),
    _publish_row(
        "latency",
        "request to till, 10 tills, 100 events/s",
        {
            "p50 ms": Target(1.5, "shop-pool", at_most=True),
            "p99 ms": Target(1.0, "shop-pool", at_most=True),
        },
        subjects=("posd", "shop-pool"),
        tenants=[1],
        tills=10,
        posters=8,
        rate=100.0,
        seconds=3.0,
    ),
    _publish_row(
        "latency-many",
        "request to till, 2,000 tills of 200 tenants, 500 events/s",
        {"p99 ms": Target(2.0, "shop-pool", at_most=True)},
        subjects=("posd", "shop-pool"),
        tenants=range(1, 201),
        tills=10,
        posters=32,
        rate=500.0,
        seconds=5.0,
        full_only=True,
    ),
    _commit_row(
        "commit",
        "INSERT of an order by SQL, sent with its COMMIT, to till; 10 tills, 100 orders/s",
        {"p50 ms": Target(3.0, at_most=True), "p99 ms": Target(6.0, at_most=True)},
        tenants=[1],
        tills=10,
        rate=100.0,
    ),
    _commit_row(
        "commit-many",
        "the same, 2,000 tills of 200 tenants, 500 orders/s",
        {"p99 ms": Target(20.0, at_most=True)},
        tenants=range(1, 201),
        tills=10,
        rate=500.0,
        full_only=True,
    ),
    Row(
        "backlog",
        f"{_BACKLOG:,} events that one till has missed",
        ("posd",),
        {"events/s": Target(80_000)},
        _publish_backlog,
        _backlog,
    ),
    Row(
        "growth",
        "publishing by REST over all tenants of the database, and over one; 32 posters, no tills",
        ("posd", "shop-pool"),
        {"all / one": Target(0.9)},
        nothing,
        _growth,
        full_only=True,
    ),
    Row(
        "sizes",
        "publishing by REST to 10 tills with events of 200 B to 100 KB; 32 posters",
        ("posd", "shop-pool"),
        {},
        _open_ten,
        _sizes,
        full_only=True,
    ),
)
