"""The fate of the events, compared with the promises of docs/high-availability.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from attrs import astuple, frozen

from tests.failover.calamities import KILL, Calamity
from tests.failover.configuration import DIRECT
from tests.integration.load import Load

MOST_SECONDS: Final = 3.0
"""The maximal seconds without service of posd while the database confirms commits, and also in all at a
switchover if the database was away for less.

A proxy needs time to detect the new leader, so the bound applies to a posd that connects directly.
"""
_MARGIN: Final = 1.0


@frozen
class Verdict:
    """The numbers of lost, moved and repeated events, and of unnecessary or missing resyncs."""

    events: int
    confirmed: int
    lost: int
    """A confirmed COMMIT or publish by REST whose event is not in the log."""
    reordered: int
    repeated: int
    """An event that a connection received twice, or that was published twice."""
    missed: int
    """Events that a till never received, except before a reload."""
    resyncs: int
    """How often a till was told to reload although all events that it had seen have survived.

    If events were lost, a till that named no position does not count: posd knows the events that it has
    sent, not those that the till has received.
    """
    unnoticed: int
    """How often a till was not told to reload at a new stream id although it had seen lost events."""
    faults: Sequence[str]

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            *(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True))
        )

    @classmethod
    def over(cls, load: Load, faults: Sequence[str]) -> Verdict:
        """Return the verdict about a finished load."""
        log = load.log()
        places: dict[str, list[int]] = {}
        for seq, (kind, data) in sorted(log.items()):
            mark = data["customerName"] if kind == "new_order" else data.get("mark")
            places.setdefault(mark, []).append(seq)
        lost = reordered = 0
        repeated = sum(len(at) - 1 for at in places.values())
        for writer in load.writers:
            lost += sum(mark not in places for mark in writer.committed)
            order = [places[mark][0] for mark in writer.committed if mark in places]
            reordered += sum(after < before for before, after in pairwise(order))
        missed = resyncs = unnoticed = 0
        for rover in load.rovers:
            seen: dict[int, object] = {}
            # Since the last reload, and under which stream id.
            trusted: dict[int, object] = {}
            stream = None
            for visit in rover.visits:
                survived = all(log.get(seq) == content for seq, content in trusted.items())
                if visit.resync is not None:
                    resyncs += survived and not (lost and visit.by_cursor)
                    trusted = {}
                elif visit.stream != stream:
                    unnoticed += not survived
                stream = visit.stream
                ids = [seq for seq, _, _ in visit.received]
                reordered += sum(after < before for before, after in pairwise(ids))
                repeated += sum(count - 1 for count in Counter(ids).values())
                received = {seq: (kind, data) for seq, kind, data in visit.received}
                seen.update(received)
                trusted.update(received)
            missed += len(log.keys() - seen.keys())
        confirmed = sum(len(writer.committed) for writer in load.writers)
        return cls(
            len(log), confirmed, lost, reordered, repeated, missed, resyncs, unnoticed, faults
        )


def table(calamities: Sequence[Calamity]) -> str:
    """Format the calamities, with their times in seconds."""
    heads = (
        *("what", "via", "from", "to", "promoted after"),
        *("no COMMIT for", "no REST for", "no delivery for"),
        *("then COMMIT after", "REST after", "delivery after"),
    )
    rows = []
    for each in calamities:
        *words, _, _, _, _, _, _, _ = values = astuple(each)
        rows.append((*words, *map(_seconds, values[len(words) :])))
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in (heads, *rows)
    )


def broken(verdict: Verdict, calamities: Sequence[Calamity]) -> list[str]:
    """Return the promises that were not kept."""
    told = [
        f"{name}: {count}"
        for name in ("lost", "reordered", "repeated", "missed", "resyncs", "unnoticed")
        if (count := getattr(verdict, name))
    ]
    for each in calamities:
        if each.via != DIRECT:
            continue
        there = each.committed_after or 0.0
        late = any(
            seconds is None or seconds - there > MOST_SECONDS
            for seconds in (each.published_after, each.delivered_after)
        )
        most = max(MOST_SECONDS, (each.committing or 0.0) + _MARGIN)
        if late or (each.what != KILL and (each.publishing or most + 1) > most):
            told.append(f"{each.what} of {each.old}: without service for too long")
    return [*told, *verdict.faults]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"
