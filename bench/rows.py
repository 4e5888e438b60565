"""The rows of the benchmark, and functions that their measurements share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from bench.loader import Loader
from bench.subjects import Subject
from bench.world import opening

Figures = Mapping[str, float]

WARM_SECONDS: Final = 1.0


@frozen
class Target:
    """The bound of a figure of posd: a minimum, or with `at_most` a maximum.

    If `of` is a subject, `bound` is a factor of its figure.
    """

    bound: float
    of: str | None = None
    at_most: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.bound:,g}" + ("" if self.of is None else f" × {self.of}")


@frozen
class Row:
    """A measurement of several subjects in turn, `rounds` times.

    `prepare` is called once for each subject, and `measure` in each round with the length of the measurement
    in seconds. A `fresh` row restarts the subjects in each round, because a process that has worked reuses
    its memory.
    """

    name: str
    title: str
    subjects: Sequence[str]
    targets: Mapping[str, Target]
    prepare: Callable[[Subject, Loader], None]
    measure: Callable[[Subject, Loader, float], Figures]
    seconds: float = 1.5
    rounds: int = 3
    fresh: bool = False
    full_only: bool = False


def nothing(subject: Subject, loader: Loader) -> None:
    """Do nothing: the `prepare` of rows without preparation."""


def named(tenants: Sequence[int], each: int, name: str = "TILL") -> list[bytes]:
    """Return the opening requests of `each` tills with device ids for each tenant."""
    return [opening(tenant, f"{name}_{n}") for tenant in tenants for n in range(each)]


def costs(subject: Subject, run: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Figures]:
    """Run a job. Return its result, and microseconds of processor time of server, PostgreSQL and client."""
    before, began = subject.processor(), time.monotonic()
    result = run()
    after, took = subject.processor(), time.monotonic() - began
    server, postgres = (1e6 * (b - a) for a, b in zip(before, after, strict=True))
    return result, {
        "server_us": server,
        "postgres_us": postgres,
        "client_us": 1e6 * result["processor"],
        "client_busy": result["processor"] / took,
    }
