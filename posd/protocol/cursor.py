"""The cursor of a terminal, and the position from which a new connection resumes. The functions do no I/O."""

from __future__ import annotations

from attrs import define

from posd.values import Position, Resync, Seq, SessionStart


@define(eq=False)
class SubscriptionCursor:
    """The position of a durable subscription. The terminal has stored or refused all events up to `acked`.

    A `legacy` terminal has never acknowledged an event. Its `acked` is the position at the start of its
    connection until its first acknowledgement. After that the cursor never moves backwards.
    """

    acked: Seq
    legacy: bool
    _refused: frozenset[Seq] = frozenset()

    def acknowledge(self, seq: Seq) -> Seq:
        """Note that the terminal has stored all events up to `seq`. Return the cursor.

        The cursor also moves past refused events that follow directly.
        """
        self.legacy = False
        self.acked, self._refused = skip_refused(max(self.acked, seq), self._refused)
        return self.acked

    def acknowledge_elsewhere(self, seq: Seq) -> Seq:
        """Note an acknowledgement that the terminal has not sent on this connection. Return the cursor.

        The cursor of a legacy terminal may move to a position before the start of its connection.
        """
        if self.legacy:
            self.acked = seq
        return self.acknowledge(seq)

    def refuse(self, seq: Seq) -> Seq:
        """Note that the terminal will never process event `seq`. Return the cursor."""
        self._refused |= {seq}
        return self.acknowledge(self.acked)


def skip_refused(acked: Seq, refused: frozenset[Seq]) -> tuple[Seq, frozenset[Seq]]:
    """Move a cursor past the refused events that follow directly. Return it and the later refused events."""
    while acked + 1 in refused:
        acked += 1
    return acked, frozenset(each for each in refused if each > acked)


def resume(session_start: SessionStart, requested: Position | None) -> tuple[Seq, Resync | None]:
    """Return the position to resume from, and the reason for a resync if the requested one cannot be used.

    If the terminal requests no position, it resumes from its cursor if it acknowledges events, and otherwise
    from the head. A position in an earlier stream is valid up to the last event that both streams have in
    common. A position without a stream counts in the present stream, unless the device is known to have
    events of another stream.
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
