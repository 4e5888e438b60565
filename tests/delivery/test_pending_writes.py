"""Notes that a flush could not write are put together with those that came meanwhile."""

from __future__ import annotations

from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from posd.delivery.pending_writes import DeviceClaim, PendingWrites
from tests.delivery_case import terminal

CONNECTION = UUID(int=1)


class MergeTests(SynchronousTestCase):
    def test_a_connection_was_seen_when_it_was_seen_last(self) -> None:
        early, late = (CONNECTION, 9.0, 5), (CONNECTION, 1.0, 7)
        merged = PendingWrites(heartbeats={CONNECTION: early}).merged(
            PendingWrites(heartbeats={CONNECTION: late})
        )
        self.assertEqual(merged.heartbeats, {CONNECTION: late})

    def test_a_claim_that_was_not_written_is_forgotten(self) -> None:
        """Its connection is told so, and claims again."""
        earlier, later = DeviceClaim(terminal()), DeviceClaim(terminal())
        notes = PendingWrites(claims={CONNECTION: earlier, UUID(int=2): earlier})
        self.assertEqual(
            notes.merged(PendingWrites(claims={CONNECTION: later})).claims, {CONNECTION: later}
        )
