from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.client.cursor import INTERVAL, DurableCursor
from posd.client.position import PositionFile, PositionUnreadable
from posd.values import Position

STREAM = UUID("6f1f2c52-8f2d-4b59-9a1b-0f0d6f3f8a11")


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.file = PositionFile(self.folder / "position.json")

    def test_before_the_first_save_there_is_no_position(self) -> None:
        self.assertIsNone(self.file.load())

    @given(st.integers(0, 2**63 - 1), st.none() | st.uuids())
    def test_what_was_saved_is_loaded(self, seq: int, stream: UUID | None) -> None:
        self.file.save(Position(seq, stream))
        self.assertEqual(self.file.load(), Position(seq, stream))

    def test_a_save_leaves_nothing_else_behind(self) -> None:
        self.file.save(Position(1, STREAM))
        self.file.save(Position(2, STREAM))
        self.assertEqual(list(self.folder.iterdir()), [self.file.path])

    def test_a_save_that_fails_keeps_the_old_position_and_leaves_nothing_behind(self) -> None:
        self.file.save(Position(1, STREAM))

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        with self.assertRaises(OSError):
            self.file.save(Position(2, STREAM))
        self.assertEqual(self.file.load(), Position(1, STREAM))
        self.assertEqual(list(self.folder.iterdir()), [self.file.path])

    def test_a_file_without_a_position_is_refused(self) -> None:
        for content in (
            b"",
            b"1042",
            b'{"id":1042}',
            b'{"id":true,"streamId":null}',
            b'{"id":-1,"streamId":null}',
            b'{"id":1042,"streamId":"today"}',
            b'{"id":1042,"streamId"',
        ):
            self.file.path.write_bytes(content)
            with self.assertRaisesRegex(PositionUnreadable, "position.json"):
                self.file.load()


class Cursors(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.file = PositionFile(Path(self.mktemp()))
        self.acks: list[int] = []
        self.told = True
        self.cursor = DurableCursor(self.clock, None, self.file)

    def hear(self, position: Position) -> bool:
        """Act as a server that accepts positions, or as one with another stream."""
        if self.told:
            self.acks.append(position.seq)
        return self.told

    def test_a_refused_acknowledgement_stays_due(self) -> None:
        self.told = False
        self.cursor.attach(self.hear)
        self.cursor.advance(Position(1, STREAM))
        self.clock.advance(INTERVAL)
        self.assertEqual((self.acks, self.cursor.acknowledged), ([], None))
        self.told = True
        self.cursor.save_now()
        self.assertEqual((self.acks, self.cursor.acknowledged), ([1], 1))

    def test_the_first_event_of_a_burst_is_acknowledged_at_once_and_the_rest_together(self) -> None:
        self.cursor.attach(self.hear)
        for seq in (1, 2):
            self.cursor.advance(Position(seq, STREAM))
        self.clock.advance(0)
        self.assertEqual(self.acks, [2])
        for seq in (3, 4, 5):
            self.cursor.advance(Position(seq, STREAM))
            self.clock.advance(INTERVAL / 4)
        self.assertEqual(self.acks, [2])
        self.clock.advance(INTERVAL / 4)
        self.assertEqual((self.acks, self.file.load()), ([2, 5], Position(5, STREAM)))

    def test_without_a_connection_the_position_is_saved(self) -> None:
        self.cursor.advance(Position(1, STREAM))
        self.clock.advance(0)
        self.assertEqual(self.file.load(), Position(1, STREAM))
        self.cursor.attach(self.hear)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.acks, [1])

    def test_a_position_that_cannot_be_saved_is_not_acknowledged_until_it_can(self) -> None:
        broken = PositionFile(Path(self.mktemp()) / "missing" / "position.json")
        cursor = DurableCursor(self.clock, None, broken)
        cursor.attach(self.hear)
        cursor.advance(Position(1, STREAM))
        self.clock.advance(0)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.acks, [])
        broken.path.parent.mkdir(parents=True)
        self.clock.advance(5)
        self.assertEqual((self.acks, broken.load()), ([1], Position(1, STREAM)))

    def test_a_position_from_the_server_is_saved_and_not_acknowledged(self) -> None:
        self.cursor.attach(self.hear)
        self.cursor.adopt(Position(1041, STREAM))
        self.clock.advance(INTERVAL)
        self.assertEqual((self.file.load(), self.acks), (Position(1041, STREAM), []))

    def test_a_cursor_that_is_closed_leaves_no_timer(self) -> None:
        self.cursor.advance(Position(1, STREAM))
        self.cursor.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
