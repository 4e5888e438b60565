"""Tests of merging: writes that a flush could not do are merged with later ones."""

from __future__ import annotations

from uuid import UUID

from twisted.trial.unittest import SynchronousTestCase

from posd.delivery.pending_writes import DeviceClaim, PendingWrites
from tests.delivery_case import terminal

CONNECTION = UUID(int=1)


class MergeTests(SynchronousTestCase):
    def test_the_later_heartbeat_of_a_connection_counts(self) -> None:
        early, late = (CONNECTION, 9.0, 5), (CONNECTION, 1.0, 7)
        merged = PendingWrites(heartbeats={CONNECTION: early}).merged(
            PendingWrites(heartbeats={CONNECTION: late})
        )
        self.assertEqual(merged.heartbeats, {CONNECTION: late})

    def test_a_claim_that_was_not_written_is_dropped(self) -> None:
        """The caller gets an error, and claims again."""
        earlier, later = DeviceClaim(terminal()), DeviceClaim(terminal())
        pending = PendingWrites(claims={CONNECTION: earlier, UUID(int=2): earlier})
        self.assertEqual(
            pending.merged(PendingWrites(claims={CONNECTION: later})).claims, {CONNECTION: later}
        )
