"""How far a terminal is by its own word, and where it goes on from when it connects. Pure."""

from __future__ import annotations

from attrs import define

from posd.values import Position, Resync, Seq, SessionStart


@define(eq=False)
class SubscriptionCursor:
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
        self.acked, self._refused = skip_refused(max(self.acked, seq), self._refused)
        return self.acked

    def acknowledge_elsewhere(self, seq: Seq) -> Seq:
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


def skip_refused(acked: Seq, refused: frozenset[Seq]) -> tuple[Seq, frozenset[Seq]]:
    """Move a cursor past what was refused right after it; where it is then, and what is left."""
    while acked + 1 in refused:
        acked += 1
    return acked, frozenset(each for each in refused if each > acked)


def resume(session_start: SessionStart, requested: Position | None) -> tuple[Seq, Resync | None]:
    """Where to go on from, and why not from where the terminal wanted.

    Without a position of its own a terminal that acknowledges goes on from its cursor, every other
    one from the head. A position of an earlier stream is as good as one of the present stream, as far
    as the two are the same. A position without a stream is taken for one of the present stream, unless
    the device is known to have events of another one.
    """
    head = session_start.head
    if requested is not None:
        if requested.stream_id is None:
            is_lost = session_start.astray
        elif requested.stream_id == head.stream_id:
            is_lost = False
        else:
            is_lost = session_start.shared is None or requested.seq > session_start.shared
        requested_seq = requested.seq
    elif session_start.acked is not None and not session_start.legacy:
        requested_seq, is_lost = session_start.acked, session_start.astray
    else:
        return head.last_seq, None
    if is_lost:
        return head.last_seq, Resync.RESET
    if requested_seq > head.last_seq:
        return head.last_seq, Resync.AHEAD
    if requested_seq < head.pruned_seq:
        return head.last_seq, Resync.RETENTION
    return requested_seq, None
