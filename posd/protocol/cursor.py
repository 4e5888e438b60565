"""How far a terminal is by its own word, and where it goes on from when it connects. Pure."""

from __future__ import annotations

from attrs import define

from posd.values import Opening, Position, Resync, Seq


@define(eq=False)
class Cursor:
    """The position of a durable subscription: all events up to `acked` are done with.

    A `legacy` terminal has never said how far it is. Its `acked` is where its connection began, until it says
    a first word. From then on the cursor never moves backwards.
    """

    acked: Seq
    legacy: bool
    _refused: frozenset[Seq] = frozenset()

    def acknowledge(self, seq: Seq) -> Seq:
        """The terminal has stored everything up to `seq`; how far it is now.

        What it refused right after that is done with too.
        """
        self.legacy = False
        self.acked, self._refused = passed(max(self.acked, seq), self._refused)
        return self.acked

    def hear(self, seq: Seq) -> Seq:
        """The terminal has said on another road that it has everything up to `seq`; how far it is.

        It has not said more than that, so the cursor of a legacy terminal may go back to before its
        connection began.
        """
        if self.legacy:
            self.acked = seq
        return self.acknowledge(seq)

    def refuse(self, seq: Seq) -> Seq:
        """The terminal will never process event `seq`; how far it is now."""
        self._refused |= {seq}
        return self.acknowledge(self.acked)


def passed(acked: Seq, refused: frozenset[Seq]) -> tuple[Seq, frozenset[Seq]]:
    """Move a cursor past what was refused right after it; where it is then, and what is left."""
    while acked + 1 in refused:
        acked += 1
    return acked, frozenset(each for each in refused if each > acked)


def resume(opening: Opening, asked: Position | None) -> tuple[Seq, Resync | None]:
    """Where to go on from, and why not from where the terminal wanted.

    Without a position of its own a terminal that acknowledges goes on from its cursor, every other
    one from the head. A position of an earlier stream is as good as one of the present stream, as far
    as the two are the same. A position without a stream is taken for one of the present stream, unless
    the device is known to have events of another one.
    """
    head = opening.head
    if asked is not None:
        if asked.stream_id is None:
            is_lost = opening.astray
        elif asked.stream_id == head.stream_id:
            is_lost = False
        else:
            is_lost = opening.shared is None or asked.seq > opening.shared
        wanted = asked.seq
    elif opening.acked is not None and not opening.legacy:
        wanted, is_lost = opening.acked, opening.astray
    else:
        return head.last_seq, None
    if is_lost:
        return head.last_seq, Resync.RESET
    if wanted > head.last_seq:
        return head.last_seq, Resync.AHEAD
    if wanted < head.pruned_seq:
        return head.last_seq, Resync.RETENTION
    return wanted, None
