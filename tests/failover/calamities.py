"""End the leader repeatedly while shops write and tills read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

from tests.failover.cluster import Cluster, Machine
from tests.integration.load import HOOK, REST, SQL, Load

SWITCHOVER: Final = "switchover"
KILL: Final = "kill -9"
UPGRADE: Final = "upgrade"
"""Restart one machine after the other: the followers, and after a switchover the old leader."""

_PERIOD: Final = 60.0
_PROMOTION_SECONDS: Final = 120.0
_LET_RUN_SECONDS: Final = 5.0


@frozen
class Calamity:
    """The end of a leader, as seen by the shop whose posd connects `via` one of the ways.

    Times are in seconds. `None` means that the event did not happen.

    `promoted` is the time until another machine accepted writes. `committing` is the longest time without
    a COMMIT of a shop that writes to the database directly, `publishing` that without a confirmed publish
    by REST, and `delivery` that in which a till received nothing. `committed_after`, `published_after`
    and `delivered_after` are the times from the promotion until such a COMMIT was confirmed (which needs
    a follower), until a publish by REST was confirmed, and until every till received a new event.
    """

    what: str
    via: str
    old: str
    new: str
    promoted: float
    committing: float | None
    publishing: float | None
    delivery: float | None
    committed_after: float | None
    published_after: float | None
    delivered_after: float | None


def every_minute(
    cluster: Cluster, loads: Mapping[str, Load], minutes: int
) -> Iterable[list[Calamity]]:
    """Switch over, kill and upgrade in turn, once per minute if the time suffices.

    Return the results of all loads, by the way in which their posd connects.
    """
    for number in range(minutes):
        leader = cluster.leader()
        what = (SWITCHOVER, KILL, UPGRADE)[number % 3]
        if what == UPGRADE:
            for machine in cluster.machines:
                if machine is not leader:
                    machine.restart()
                    cluster.wait_until_whole()
        began = time.monotonic()
        if what == KILL:
            leader.kill()
        else:
            cluster.switch_over(leader)
        new = _promoted(cluster, leader)
        promoted = time.monotonic()
        heads = {via: load.head() for via, load in loads.items()}
        if what == KILL:
            time.sleep(_LET_RUN_SECONDS)
            leader.start()
        if what == UPGRADE:
            cluster.wait_until_whole()
            leader.restart()
        cluster.wait_until_whole()
        time.sleep(max(_LET_RUN_SECONDS, began + _PERIOD - time.monotonic()))
        for load in loads.values():
            for node in load.nodes:
                assert node.process.poll() is None, f"posd ended:\n{node.log()[-3000:]}"
        ends = (what, leader, new, began, promoted)
        yield [_measured(load, via, heads[via], *ends) for via, load in loads.items()]


def _promoted(cluster: Cluster, old: Machine) -> Machine:
    """Wait until another machine accepts writes, and return it."""
    others = [machine for machine in cluster.machines if machine is not old]
    found: list[Machine] = []

    def look() -> bool:
        found.extend(machine for machine in others if machine.accepts_writes())
        return bool(found)

    cluster.wait(look, f"a successor of {old.name}", _PROMOTION_SECONDS)
    return found[0]


def _measured(
    load: Load,
    via: str,
    head: int,
    what: str,
    old: Machine,
    new: Machine,
    began: float,
    promoted: float,
) -> Calamity:
    moments = [moment for writer in load.writers for moment in list(writer.moments)]
    commits, published = (
        sorted(when for when, by in moments if by in roads) for roads in ((SQL, HOOK), (REST,))
    )
    tills = [list(rover.arrivals) for rover in load.rovers]
    now = time.monotonic()
    return Calamity(
        what,
        via,
        old.name,
        new.name,
        promoted - began,
        _gap(commits, began, now),
        _gap(published, began, now),
        _longest(_gap([when for when, _ in till], began, now) for till in tills),
        _first([when for when in commits if when > promoted], promoted),
        _first([when for when in published if when > promoted], promoted),
        _longest(_first([when for when, seq in till if seq > head], promoted) for till in tills),
    )


def _gap(times: Sequence[float], began: float, ended: float) -> float | None:
    """Return the longest pause in a window, including the pause in which the window begins."""
    before = [when for when in times if when <= began][-1:]
    within = [when for when in times if began < when <= ended]
    return max((after - when for when, after in pairwise(before + within)), default=None)


def _first(times: Sequence[float], since: float) -> float | None:
    return times[0] - since if times else None


def _longest(each: Iterable[float | None]) -> float | None:
    """Return the maximum, or `None` if a value is missing."""
    found = list(each)
    known = [seconds for seconds in found if seconds is not None]
    return max(known) if len(known) == len(found) else None
