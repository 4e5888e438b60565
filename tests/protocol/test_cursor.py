"""Tests of the cursor of a terminal, and of the position from which it resumes."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.protocol.cursor import SubscriptionCursor, resume
from posd.values import Position, Resync, Seq, SessionStart, StreamHead

THIS = UUID("5a1c2e00-0000-4000-8000-000000000001")
OTHER = UUID("5a1c2e00-0000-4000-8000-000000000002")

HEAD = StreamHead(7, THIS, last_seq=100, pruned_seq=20)
STRANGER = SessionStart(HEAD, acked=None, legacy=False, at=datetime(2026, 11, 22, tzinfo=UTC))
NAMED = evolve(STRANGER, acked=60)
LEGACY = evolve(NAMED, legacy=True)


class CursorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cursor = SubscriptionCursor(10, legacy=False)

    def test_an_acknowledgement_covers_everything_before_it(self) -> None:
        self.assertEqual(self.cursor.acknowledge(15), 15)

    def test_the_cursor_never_moves_backwards(self) -> None:
        self.cursor.acknowledge(15)
        self.assertEqual(self.cursor.acknowledge(12), 15)

    def test_the_cursor_moves_past_a_refused_event_that_is_next(self) -> None:
        self.assertEqual(self.cursor.refuse(11), 11)

    def test_the_cursor_moves_past_a_refused_event_when_the_earlier_ones_are_stored(self) -> None:
        self.assertEqual([self.cursor.refuse(13), self.cursor.refuse(12)], [10, 10])
        self.assertEqual(self.cursor.acknowledge(11), 13)

    def test_events_refused_on_an_earlier_connection_count_too(self) -> None:
        cursor = SubscriptionCursor(10, False, frozenset({12, 14}))
        self.assertEqual([cursor.acknowledge(11), cursor.refuse(13)], [12, 14])

    def test_refusing_a_stored_event_changes_nothing(self) -> None:
        self.assertEqual(self.cursor.refuse(9), 10)
        self.assertEqual(self.cursor._refused, set())

    def test_an_acknowledgement_by_rest_counts_like_one_on_this_connection(self) -> None:
        self.cursor.refuse(16)
        self.assertEqual(
            [
                self.cursor.acknowledge_elsewhere(12),
                self.cursor.acknowledge_elsewhere(15),
                self.cursor.acknowledge_elsewhere(9),
            ],
            [12, 16, 16],
        )

    def test_an_acknowledgement_by_rest_may_move_a_legacy_cursor_back(self) -> None:
        cursor = SubscriptionCursor(10, legacy=True)
        self.assertEqual(cursor.acknowledge_elsewhere(7), 7)
        self.assertFalse(cursor.legacy)
        self.assertEqual(cursor.acknowledge(9), 9)

    def test_the_first_acknowledgement_ends_legacy(self) -> None:
        cursor = SubscriptionCursor(10, legacy=True)
        self.assertEqual(cursor.acknowledge(12), 12)
        self.assertFalse(cursor.legacy)

    def test_the_first_acknowledgement_does_not_move_the_cursor_back(self) -> None:
        for speak in (SubscriptionCursor.acknowledge, SubscriptionCursor.refuse):
            cursor = SubscriptionCursor(10, legacy=True)
            self.assertEqual(speak(cursor, 5), 10)

    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60))
    def test_all_events_up_to_the_cursor_were_stored_or_refused(
        self, words: list[tuple[bool, Seq]]
    ) -> None:
        cursor, done, before = SubscriptionCursor(0, legacy=False), {0}, 0
        for refused, seq in words:
            now = cursor.refuse(seq) if refused else cursor.acknowledge(seq)
            done |= {seq} if refused else set(range(seq + 1))
            furthest = next(each for each in range(32) if each + 1 not in done)
            self.assertEqual(now, furthest)
            self.assertGreaterEqual(now, before)
            before = now


class ResumeTests(SynchronousTestCase):
    def test_a_terminal_without_a_device_id_begins_at_the_head(self) -> None:
        self.assertEqual(resume(STRANGER, None), (100, None))

    def test_a_legacy_terminal_begins_at_the_head(self) -> None:
        self.assertEqual(resume(LEGACY, None), (100, None))

    def test_a_terminal_that_acknowledges_resumes_from_its_cursor(self) -> None:
        self.assertEqual(resume(NAMED, None), (60, None))

    def test_a_terminal_resumes_from_the_requested_position(self) -> None:
        for session_start in (STRANGER, LEGACY, NAMED):
            self.assertEqual(resume(session_start, Position(50)), (50, None))
            self.assertEqual(resume(session_start, Position(80, THIS)), (80, None))

    def test_the_head_is_a_valid_position(self) -> None:
        self.assertEqual(resume(STRANGER, Position(100)), (100, None))

    def test_a_position_of_another_stream_is_invalid(self) -> None:
        self.assertEqual(resume(STRANGER, Position(50, OTHER)), (100, Resync.RESET))

    def test_a_position_of_an_earlier_stream_is_valid_up_to_the_last_common_event(self) -> None:
        earlier = evolve(NAMED, shared=50)
        self.assertEqual(resume(earlier, Position(50, OTHER)), (50, None))
        self.assertEqual(resume(earlier, Position(51, OTHER)), (100, Resync.RESET))
        self.assertEqual(resume(earlier, Position(19, OTHER)), (100, Resync.RETENTION))
        self.assertEqual(resume(earlier, Position(80, THIS)), (80, None))

    def test_a_device_with_events_of_another_stream_gets_a_resync(self) -> None:
        astray = evolve(NAMED, astray=True)
        self.assertEqual(resume(astray, None), (100, Resync.RESET))
        with self.subTest("what it says without a stream may be of that one"):
            self.assertEqual(resume(astray, Position(60)), (100, Resync.RESET))
        with self.subTest("what it says with its stream is what it has"):
            self.assertEqual(resume(astray, Position(60, THIS)), (60, None))
            self.assertEqual(resume(evolve(astray, shared=70), Position(60, OTHER)), (60, None))

    def test_a_deployed_till_gets_no_resync(self) -> None:
        self.assertEqual(resume(evolve(LEGACY, astray=True), None), (100, None))

    def test_a_position_after_the_head_is_a_resync(self) -> None:
        self.assertEqual(resume(STRANGER, Position(101)), (100, Resync.AHEAD))
        self.assertEqual(resume(evolve(NAMED, acked=101), None), (100, Resync.AHEAD))

    def test_a_position_below_the_floor_is_a_resync(self) -> None:
        self.assertEqual(resume(STRANGER, Position(19)), (100, Resync.RETENTION))
        self.assertEqual(resume(evolve(NAMED, acked=19), None), (100, Resync.RETENTION))

    def test_the_position_of_the_last_deleted_event_is_valid(self) -> None:
        self.assertEqual(resume(STRANGER, Position(20)), (20, None))
