"""What became of the events, and whether that is what docs/high-availability.md promises."""

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
"""Without posd's service although the database confirms commits again; and in all at a switchover, if the
database itself was away for less.

A proxy takes its own time to see which machine leads, so this holds for a posd that connects directly.
"""
_MARGIN: Final = 1.0


@frozen
class Verdict:
    """How many events were lost, moved and repeated, and how many tills were sent back for nothing."""

    events: int
    confirmed: int
    lost: int
    """A COMMIT or a publish by REST that was confirmed, and that is not in the log."""
    reordered: int
    repeated: int
    """Within a connection, or published twice."""
    missed: int
    """Events that a till was never sent, by its own doing of loading everything anew."""
    resyncs: int
    """How often a till was told to load everything anew, although all that it had seen has survived.

    Where events were lost, a till that named no position does not count: posd knows what it was sent, not
    what it received of that.
    """
    unnoticed: int
    """How often a till was not told so at a new name of the stream, although it had seen what is lost."""
    faults: Sequence[str]

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            *(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True))
        )

    @classmethod
    def over(cls, load: Load, faults: Sequence[str]) -> Verdict:
        """Judge a load that has finished."""
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
            # Since it last loaded everything, and under which name of the stream.
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
    """What each was, and the times after it in seconds."""
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
    """Each promise that was not kept."""
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
