"""The rows of the table: what each opens, sends and measures. bench/README.md explains them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from bench.loader import Loader
from bench.subjects import Subject
from bench.world import opening, publishing

Figures = Mapping[str, float]

WARM_SECONDS: Final = 1.0


@frozen
class Target:
    """What a figure of posd's must be: at least or at most `bound`, times the figure of `of` if given."""

    bound: float
    of: str | None = None
    at_most: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.bound:g}" + ("" if self.of is None else f" × {self.of}")


@frozen
class Row:
    """A measurement that is made of each subject in turn, `rounds` times.

    `prepare` is called once for each subject, `measure` in every round with the seconds it may take.
    """

    name: str
    title: str
    subjects: Sequence[str]
    targets: Mapping[str, Target]
    prepare: Callable[[Subject, Loader], None]
    measure: Callable[[Subject, Loader, float], Figures]
    seconds: float = 2.0
    rounds: int = 3
    full_only: bool = False


def named(tenants: Sequence[int], each: int) -> list[bytes]:
    """The openings of so many named tills of each of these tenants."""
    return [opening(tenant, f"TILL_{n}") for tenant in tenants for n in range(each)]


def costs(subject: Subject, run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Figures]:
    """Run a job; its result, and the microseconds of processor time of server and PostgreSQL."""
    before, began = subject.processor(), time.monotonic()
    result = run()
    after, took = subject.processor(), time.monotonic() - began
    server, postgres = (1e6 * (b - a) for a, b in zip(before, after, strict=True))
    return result, {
        "server_us": server,
        "postgres_us": postgres,
        "client_busy": result["processor"] / took,
    }


def _few_warm(tills: int, requests: Sequence[bytes], events: int) -> Callable[..., None]:
    def prepare(subject: Subject, loader: Loader) -> None:
        loader.open(named([1], tills))
        loader.waves(requests, WARM_SECONDS, events)

    return prepare


def _waves(events: int) -> Callable[[Subject, Loader, float], Figures]:
    """Messages a second when the next request is sent after all tills have the last one's events."""
    requests = [publishing(1, None if events == 1 else events)]

    def measure(subject: Subject, loader: Loader, seconds: float) -> Figures:
        result, used = costs(subject, lambda: loader.waves(requests, seconds, events))
        messages = result["messages"]
        return {
            "messages/s": messages / result["seconds"],
            "p50 ms": result["latency_ms"]["p50"],
            "p99 ms": result["latency_ms"]["p99"],
            "server µs/message": used["server_us"] / messages,
            "PostgreSQL µs/message": used["postgres_us"] / messages,
            "client busy": used["client_busy"],
        }

    return measure


def _publish(
    tenants: Sequence[int], tills: int, posters: int, rate: float = 0.0, batch: int | None = None
) -> tuple[Callable[[Subject, Loader], None], Callable[[Subject, Loader, float], Figures]]:
    """Events a second by REST, to `tills` of each tenant, and how late answers and messages are."""
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
    name: str, title: str, targets: Mapping[str, Target], *, subjects: Sequence[str], **how: Any
) -> Row:
    seconds = how.pop("seconds", 2.0)
    prepare, measure = _publish(**how)
    return Row(name, title, subjects, targets, prepare, measure, seconds=seconds)


ROWS: Final = (
    Row(
        "fanout",
        "fan-out, 1,000 named tills of one tenant, one event at a time",
        ("posd", "node-ws", "shop-pool", "deployed", "autobahn", "floor"),
        {"messages/s": Target(1.0, "node-ws")},
        _few_warm(1000, [publishing(1)], 1),
        _waves(1),
    ),
    Row(
        "burst",
        "bursts, 100 named tills, `events` of 8 outstanding",
        ("posd", "shop-pool", "autobahn"),
        {"messages/s": Target(1.3, "shop-pool")},
        _few_warm(100, [publishing(1, 8)], 8),
        _waves(8),
    ),
    Row(
        "sparse",
        "processor time a message, 100 named tills, one event at a time, publishing included",
        ("posd", "shop-pool", "autobahn"),
        {"server µs/message": Target(1.25, "shop-pool", at_most=True)},
        _few_warm(100, [publishing(1)], 1),
        _waves(1),
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
)
