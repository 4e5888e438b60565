"""Rows about connections: an idle one, opening one, and many at once."""

from __future__ import annotations

import time
from typing import Final

from bench.loader import Loader
from bench.rows import Figures, Row, Target, costs, named, nothing
from bench.subjects import Subject
from bench.world import opening, publishing

_IDLE: Final = range(1, 101)
_MANY: Final = range(1, 201)
_MISSED: Final = 10
_AWAY: Final = "AWAY"
"""The device ids of these tills. With those of other rows, missed events would be replayed there."""
_SETTLE_SECONDS: Final = 1.5
_HEADS: Final = """
    SELECT substr(slug, 6)::integer, last_seq
      FROM dinedesk_main.pos_heads JOIN dinedesk_main.tenants AS t ON t.id = tenant_id
"""


def _memory(subject: Subject, loader: Loader, seconds: float) -> Figures:
    # The first till of a tenant also loads data of the tenant. Do not count it.
    loader.open(named(_IDLE, 1))
    loader.close()
    time.sleep(_SETTLE_SECONDS)
    before = subject.memory()
    tills = named(_IDLE, 10)
    loader.open(tills)
    time.sleep(_SETTLE_SECONDS)
    return {
        "KB/till": (subject.memory() - before) / 1000 / len(tills),
        "MB without tills": before / 1e6,
    }


def _open_many(subject: Subject, loader: Loader) -> None:
    loader.open(named(_MANY, 10))
    time.sleep(_SETTLE_SECONDS)


def _idle(subject: Subject, loader: Loader, seconds: float) -> Figures:
    before, began = subject.processor(), time.monotonic()
    time.sleep(seconds)
    after, took = subject.processor(), time.monotonic() - began
    server, postgres = (100 * (b - a) / took for a, b in zip(before, after, strict=True))
    return {"server %": server, "PostgreSQL %": postgres}


def _warm_up(subject: Subject, loader: Loader) -> None:
    loader.churn(named(_IDLE, 10), 1.0)


def _handshakes(subject: Subject, loader: Loader, seconds: float) -> Figures:
    result, used = costs(subject, lambda: loader.churn(named(_IDLE, 10), seconds))
    return {
        "handshakes/s": result["done"] / result["seconds"],
        "p50 ms": result["answer_ms"]["p50"],
        "p99 ms": result["answer_ms"]["p99"],
        "server µs": used["server_us"] / result["done"],
        "PostgreSQL µs": used["postgres_us"] / result["done"],
        "client µs": used["client_us"] / result["done"],
        "client busy": used["client_busy"],
    }


def _miss(subject: Subject, loader: Loader) -> None:
    """Publish the events that the tills will miss, and connect each till once to register its device id."""
    if subject.name == "posd":
        loader.load([publishing(tenant, _MISSED) for tenant in _MANY], 0, posters=4)
    loader.open(named(_MANY, 10, _AWAY))


def _storm(subject: Subject, loader: Loader, seconds: float) -> Figures:
    loader.close()
    time.sleep(_SETTLE_SECONDS)
    missed = _MISSED if subject.name == "posd" else 0
    heads: dict[int, int] = dict(subject.world.shop.query(_HEADS))
    openings = [
        opening(tenant, f"{_AWAY}_{n}", heads[tenant] - missed if missed else None)
        for tenant in _MANY
        for n in range(10)
    ]
    result, used = costs(
        subject, lambda: loader.open(openings, at_once=len(openings), missed=missed)
    )
    return {
        "seconds": result["seconds"],
        "greeting p50 ms": result["answer_ms"]["p50"],
        "greeting p99 ms": result["answer_ms"]["p99"],
        "server µs/till": used["server_us"] / len(openings),
        "PostgreSQL µs/till": used["postgres_us"] / len(openings),
    }


ROWS: Final = (
    Row(
        "memory",
        "memory of an idle named till, 1,000 tills of 100 tenants, in a new process",
        ("posd", "node-ws", "autobahn"),
        {"KB/till": Target(32, at_most=True)},
        nothing,
        _memory,
        fresh=True,
    ),
    Row(
        "idle",
        "processor while 2,000 named tills of 200 tenants are idle",
        ("posd", "node-ws"),
        {"server %": Target(1.0, at_most=True)},
        _open_many,
        _idle,
        seconds=10.0,
        full_only=True,
    ),
    Row(
        "handshakes",
        "full TLS handshakes with the WebSocket opening, a key and a name, 16 at a time",
        ("posd", "shop-pool", "node-ws", "autobahn", "floor"),
        {"handshakes/s": Target(0.8, "shop-pool")},
        _warm_up,
        _handshakes,
    ),
    Row(
        "storm",
        "2,000 named tills of 200 tenants at once: posd with ten missed events each, node-ws without",
        ("posd", "node-ws"),
        {"seconds": Target(2.0, "node-ws", at_most=True)},
        _miss,
        _storm,
    ),
)
