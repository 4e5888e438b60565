"""Stream names, and the validity of positions under earlier names, on a real PostgreSQL."""

from __future__ import annotations

from contextlib import closing
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import psycopg2
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from posd.cli.database import BlockingExecutor, run_to_completion
from posd.database import migrations
from posd.errors import StreamRenamed
from posd.protocol.cursor import resume
from posd.protocol.jsontext import decode
from posd.store import cursors, epochs, presence, stream
from posd.store import sequencing as numbering
from posd.store.epochs import StreamEnd
from posd.values import Position, Resync, Seq, SessionStart, StreamHead
from tests.cli_runner import as_role, migrated_database
from tests.store_case import KITCHEN

NODE: Final = UUID("7d1b4c1e-6f5e-4f0e-8b5a-2f1f6f3c9a10")


@define(eq=False)
class Shop:
    """The kitchen's stream, read with the daemon's privileges, and damaged by a superuser."""

    dsn: str
    executor: BlockingExecutor = field(init=False)
    _admin: Any = field(init=False)
    _daemon: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._daemon = migrations.connect(as_role(self.dsn, "posd"))
        self._admin = migrations.connect(self.dsn)
        for connection in (self._daemon, self._admin):
            connection.autocommit = True
        self.executor = BlockingExecutor(self._daemon)
        # The database is a copy of a template, so its fingerprint differs.
        run_to_completion(epochs.is_same_history(self.executor))

    def close(self) -> None:
        self._daemon.close()
        self._admin.close()

    def admin(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._admin.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    @property
    def head(self) -> StreamHead:
        return run_to_completion(stream.load_heads(self.executor, [1]))[1]

    def publish(self, *numbers: int) -> None:
        entries = [numbering.LogEntry(1, "note", f'{{"n":{number}}}') for number in numbers]
        run_to_completion(numbering.record_entries(self.executor, NODE, entries))

    def lose(self, last: Seq) -> None:
        """Delete the events after a position."""
        self.admin("DELETE FROM dinedesk_main.pos_events WHERE tenant_id = 1 AND seq > %s", last)
        self.admin(
            "UPDATE dinedesk_main.pos_heads SET last_seq = %s, sent_seq = least(sent_seq, %s),"
            " received_seq = least(received_seq, %s) WHERE tenant_id = 1",
            *(last, last, last),
        )

    def promote(self) -> None:
        """Change the fingerprint of the database, as the promotion of a standby does."""
        self.admin("UPDATE dinedesk_main.pos_incarnation SET fingerprint = %s", str(uuid4()))
        # New server processes have not compared the fingerprint yet.
        self.run_as_daemon("RESET posd.recognised")

    def run_as_daemon(self, sql: str) -> None:
        run_to_completion(self.executor.execute(sql))

    def events(self, after: Seq) -> list[int]:
        found = run_to_completion(
            stream.events_after(self.executor, KITCHEN, self.head.stream_id, after, 1000)
        )
        return [int(decode(each.data)["n"]) for each in found]  # type: ignore[index]

    def ends(self) -> dict[UUID, StreamEnd]:
        names = self.admin("SELECT stream_id::text FROM dinedesk_main.pos_stream_epochs")
        wanted = [(1, UUID(name)) for (name,) in names]
        return {
            name: end
            for (_, name), end in run_to_completion(
                epochs.stream_ends(self.executor, wanted)
            ).items()
        }

    def session_start(self, device: str | None, asked: Position | None) -> SessionStart:
        session_start = run_to_completion(
            presence.load_session_starts(self.executor, [(1, device)], 10)
        )[1, device]
        if asked is not None and asked.stream_id not in (None, session_start.head.stream_id):
            assert asked.stream_id is not None
            name = 1, asked.stream_id
            found = run_to_completion(epochs.stream_ends(self.executor, [name]))
            session_start = evolve(
                session_start, shared=found[name].shared if name in found else None
            )
        return session_start

    def cursor(self, device: str = "front") -> tuple[Seq, str | None]:
        ((acked, name),) = self.admin(
            "SELECT acked_seq, stream_id::text FROM dinedesk_main.pos_cursors WHERE device_id = %s",
            device,
        )
        return acked, name


class ShopCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.shop = Shop(migrated_database())
        self.addCleanup(self.shop.close)
        self.executor = self.shop.executor

    def rename(self) -> UUID:
        """Promote a standby. Return the name that has ended."""
        before = self.shop.head.stream_id
        self.shop.promote()
        self.assertFalse(run_to_completion(epochs.is_same_history(self.executor)))
        return before


class NamesTests(ShopCase):
    def test_a_stream_begins_with_one_name(self) -> None:
        rows = self.shop.admin(
            "SELECT stream_id::text, ended_seq FROM dinedesk_main.pos_stream_epochs"
            " WHERE ended_seq IS NULL"
        )
        self.assertEqual(rows, [(str(self.shop.head.stream_id), None)])

    def test_a_database_that_is_another_one_is_recognised_once(self) -> None:
        self.shop.publish(1, 2, 3)
        before = self.rename()
        now = self.shop.head.stream_id
        self.assertNotEqual(now, before)
        self.assertTrue(run_to_completion(epochs.is_same_history(self.executor)))
        self.assertEqual(self.shop.head.stream_id, now)
        self.assertEqual(self.shop.ends()[before], StreamEnd(3, 3))

    def test_it_is_recognised_before_anything_is_numbered(self) -> None:
        """A pooler may have moved the connection to the new primary."""
        self.shop.publish(1, 2)
        before = self.shop.head.stream_id
        self.shop.promote()
        self.shop.publish(3)
        self.assertEqual(self.shop.ends()[before], StreamEnd(2, 2))
        self.assertEqual(self.shop.head.last_seq, 3)

    def test_what_is_rolled_back_is_recognised_again(self) -> None:
        self.shop.publish(1)
        before = self.shop.head.stream_id
        self.shop.promote()
        self.shop.run_as_daemon("BEGIN")
        self.shop.publish(2)
        self.shop.run_as_daemon("ROLLBACK")
        self.assertEqual(self.shop.head.stream_id, before)
        self.shop.publish(3)
        self.assertEqual(self.shop.ends()[before], StreamEnd(1, 1))

    def test_two_nodes_that_find_it_give_one_name(self) -> None:
        self.shop.promote()
        with closing(psycopg2.connect(as_role(self.shop.dsn, "posd"))) as other:
            first = BlockingExecutor(other)
            self.assertFalse(run_to_completion(epochs.is_same_history(first)))
            other.commit()
        self.assertTrue(run_to_completion(epochs.is_same_history(self.executor)))

    def test_heads_that_were_found_behind_end_there(self) -> None:
        self.shop.publish(1, 2, 3, 4)
        self.shop.lose(2)
        found = self.shop.head
        # Another node numbers an event before this node compares.
        self.shop.publish(5)
        run_to_completion(epochs.begin_new_history(self.executor, [found]))
        self.assertEqual(self.shop.ends()[found.stream_id], StreamEnd(2, 2))
        self.assertEqual(self.shop.head.last_seq, 3)

    def test_another_node_may_have_been_faster(self) -> None:
        self.shop.publish(1, 2)
        found = self.shop.head
        for _ in range(2):
            run_to_completion(epochs.begin_new_history(self.executor, [found]))
        self.assertEqual(self.shop.ends()[found.stream_id], StreamEnd(2, 2))
        self.assertEqual(
            self.shop.admin(
                "SELECT count(*) FROM dinedesk_main.pos_stream_epochs WHERE began_seq = 2"
            ),
            [(1,)],
        )

    def test_by_hand_nothing_is_common_unless_somebody_vouches_for_it(self) -> None:
        self.shop.publish(1, 2, 3)
        first = self.shop.head.stream_id
        run_to_completion(epochs.reset_streams(self.executor, [1], 2))
        self.assertEqual(self.shop.ends()[first], StreamEnd(2, 3))
        run_to_completion(epochs.reset_streams(self.executor, [1]))
        self.assertEqual(self.shop.ends()[first], StreamEnd(0, 3))

    def test_what_is_common_never_goes_beyond_the_head(self) -> None:
        self.shop.publish(1)
        before = self.shop.head.stream_id
        run_to_completion(epochs.reset_streams(self.executor, [1], 10))
        self.assertEqual(self.shop.ends()[before], StreamEnd(1, 1))

    def test_a_later_loss_counts_for_earlier_names_too(self) -> None:
        self.shop.publish(1, 2, 3)
        first = self.rename()
        self.shop.publish(4)
        self.shop.lose(1)
        second = self.rename()
        self.assertEqual(self.shop.ends()[first], StreamEnd(1, 1))
        self.assertEqual(self.shop.ends()[second], StreamEnd(1, 1))
        self.shop.publish(5, 6)
        third = self.rename()
        self.assertEqual(self.shop.ends()[first], StreamEnd(1, 1))
        self.assertEqual(self.shop.ends()[third], StreamEnd(3, 3))

    def test_a_name_of_which_everything_is_pruned_is_forgotten(self) -> None:
        self.shop.publish(1, 2, 3)
        first = self.rename()
        self.shop.publish(4)
        self.shop.admin("UPDATE dinedesk_main.pos_heads SET pruned_seq = 4 WHERE tenant_id = 1")
        second = self.rename()
        self.assertNotIn(first, self.shop.ends())
        self.assertIn(second, self.shop.ends())

    def test_the_log_is_read_under_its_present_name_alone(self) -> None:
        self.shop.publish(1, 2)
        before = self.rename()
        with self.assertRaises(StreamRenamed):
            run_to_completion(stream.events_after(self.executor, KITCHEN, before, 0, 10))
        self.assertEqual(self.shop.events(0), [1, 2])


class ProgressTests(ShopCase):
    """`sent_seq` and `received_seq` that a node writes after a failover."""

    def progress(self, name: UUID, sent: Seq, received: Seq) -> tuple[Any, ...]:
        run_to_completion(presence.update_progress(self.executor, [(1, name, sent, received)]))
        (head,) = self.shop.admin(
            "SELECT sent_seq, received_seq, acknowledged FROM dinedesk_main.pos_heads"
            " WHERE tenant_id = 1"
        )
        return head

    def test_events_that_have_the_positions_of_lost_ones_are_neither_sent_nor_received(
        self,
    ) -> None:
        self.shop.publish(1, 2, 3, 4, 5)
        self.shop.lose(3)
        before = self.rename()
        self.shop.publish(6, 7)
        self.assertEqual(self.progress(before, 5, 4), (3, 3, 3))
        self.assertEqual(self.progress(self.shop.head.stream_id, 5, 4), (5, 4, 4))

    def test_nor_is_anything_by_a_name_that_nobody_knows(self) -> None:
        self.shop.publish(1, 2)
        self.assertEqual(self.progress(uuid4(), 2, 2), (0, 0, 0))

    def test_what_was_said_of_both_names_in_one_flush(self) -> None:
        self.shop.publish(1, 2, 3)
        before = self.rename()
        self.shop.publish(4)
        said = [(1, before, 3, 3), (1, self.shop.head.stream_id, 4, 2)]
        run_to_completion(presence.update_progress(self.executor, said))
        self.assertEqual(self.progress(before, 1, 1), (4, 3, 3))


class CursorsTests(ShopCase):
    """Acknowledged positions under a later name."""

    def setUp(self) -> None:
        super().setUp()
        self.shop.session_start("front", None)
        self.shop.publish(1, 2, 3, 4, 5)
        self.name = self.shop.head.stream_id

    def ack(self, seq: Seq, name: UUID | None = None) -> list[Seq]:
        """Acknowledge a position; return the valid part."""
        return self.acks((name or self.shop.head.stream_id, seq))

    def acks(self, *said: tuple[UUID, Seq]) -> list[Seq]:
        moves = [(1, "front", name, seq) for name, seq in said]
        accepted = run_to_completion(cursors.advance(self.executor, moves))
        self.assertLessEqual({name for name, _ in accepted}, {(1, self.shop.head.stream_id)})
        return [seq for _, seq in accepted]

    def sent(self, seq: Seq, name: UUID, *, spoke: bool = True) -> None:
        run_to_completion(cursors.mark_astray(self.executor, [(1, "front", name, seq, spoke)]))

    def told(self) -> tuple[Seq, Resync | None]:
        return resume(self.shop.session_start("front", None), None)

    def test_it_is_carried_over(self) -> None:
        """A till at position 3 of 5 when a standby with all five events is promoted."""
        self.ack(3)
        self.rename()
        self.assertEqual(self.told(), (3, None))
        self.assertEqual(self.shop.events(3), [4, 5])

    def test_while_it_is_carried_over_it_is_known_since_when_the_stream_has_its_name(self) -> None:
        def ago() -> float | None:
            return self.shop.session_start("front", None).renamed_ago

        self.ack(3)
        self.assertIsNone(ago())
        self.rename()
        moved = "UPDATE dinedesk_main.pos_stream_epochs SET began_at = now() - interval '1 hour'"
        self.assertLess(ago() or 3600, 3600)
        self.shop.admin(f"{moved} WHERE ended_seq IS NULL")
        self.assertGreaterEqual(ago() or 0, 3600)
        self.ack(4)
        self.assertIsNone(ago())

    def test_what_was_said_of_the_old_name_still_counts(self) -> None:
        self.ack(2)
        self.rename()
        self.assertEqual(self.ack(4, self.name), [4])
        self.assertEqual(self.shop.cursor(), (4, str(self.name)))
        self.assertEqual(self.told(), (4, None))

    def test_but_never_takes_the_cursor_back(self) -> None:
        self.rename()
        self.ack(5)
        self.assertEqual(self.ack(4, self.name), [4])
        self.assertEqual(self.shop.cursor(), (5, str(self.shop.head.stream_id)))

    def test_what_was_said_of_both_names_in_one_flush(self) -> None:
        self.rename()
        self.shop.publish(6)
        now = self.shop.head.stream_id
        self.assertEqual(self.acks((self.name, 5), (now, 6)), [6])
        self.assertEqual(self.shop.cursor(), (6, str(now)))

    def test_what_is_lost_is_not_taken_for_what_has_its_position_now(self) -> None:
        self.ack(2)
        self.shop.lose(3)
        self.rename()
        self.shop.publish(6, 7, 8)
        self.assertEqual(self.ack(5, self.name), [])
        self.assertEqual(self.shop.cursor(), (2, str(self.name)))

    def test_a_device_that_was_sent_what_is_lost_has_to_reload(self) -> None:
        self.ack(2)
        self.shop.lose(3)
        self.rename()
        self.shop.publish(6, 7, 8)
        self.sent(4, self.name)
        self.assertEqual(self.told(), (6, Resync.RESET))
        with self.subTest("also if it names a position, and not its stream"):
            self.assertEqual(
                resume(self.shop.session_start("front", None), Position(4)), (6, Resync.RESET)
            )
        with self.subTest("until it has said something of the present stream"):
            self.ack(6)
            self.assertEqual(self.told(), (6, None))

    def test_also_one_whose_first_word_is_lost_too(self) -> None:
        """The database has a device that never acknowledged an event, with a cursor at the head."""
        self.shop.lose(3)
        self.rename()
        self.shop.publish(6, 7, 8)
        self.sent(5, self.name, spoke=False)
        self.assertEqual(self.told(), (6, None))
        self.shop.admin("UPDATE dinedesk_main.pos_cursors SET stream_id = %s", str(self.name))
        self.sent(5, self.name)
        self.assertEqual(self.told(), (6, Resync.RESET))

    def test_one_that_was_sent_what_is_left_has_not(self) -> None:
        self.ack(2)
        self.shop.lose(3)
        self.rename()
        self.sent(3, self.name)
        self.assertEqual(self.told(), (2, None))

    def test_one_that_was_sent_a_stream_that_nobody_knows_has(self) -> None:
        self.ack(2)
        self.rename()
        self.sent(1, uuid4())
        self.assertEqual(self.told(), (5, Resync.RESET))

    def test_one_that_has_spoken_since_was_told_and_is_not_told_again(self) -> None:
        self.ack(2)
        self.shop.lose(3)
        self.rename()
        self.ack(3)
        self.sent(5, self.name)
        self.assertEqual(self.told(), (3, None))

    def test_nor_at_the_next_change_of_the_name(self) -> None:
        """A node reports positions of a device that has connected to another node since."""
        self.ack(2)
        self.shop.lose(3)
        self.rename()
        self.ack(3)
        self.rename()
        self.sent(5, self.name)
        self.assertEqual(self.told(), (3, None))

    def test_the_present_stream_has_everything_that_was_sent_of_it(self) -> None:
        self.ack(2)
        self.sent(5, self.name)
        self.assertEqual(self.told(), (2, None))

    def test_by_hand_a_cursor_beyond_what_is_common_is_of_no_use(self) -> None:
        self.ack(4)
        run_to_completion(epochs.reset_streams(self.executor, [1], 3))
        self.assertEqual(self.told(), (5, Resync.RESET))

    def test_and_one_that_is_not_beyond_it_is(self) -> None:
        self.ack(3)
        run_to_completion(epochs.reset_streams(self.executor, [1], 3))
        self.assertEqual(self.told(), (3, None))

    def test_a_device_that_reloads_from_the_beginning_begins_there(self) -> None:
        self.ack(5)
        run_to_completion(epochs.reset_streams(self.executor, [1]))
        self.ack(0)
        self.assertEqual(self.shop.cursor(), (0, str(self.shop.head.stream_id)))

    def test_a_refusal_of_the_old_name_still_counts(self) -> None:
        self.ack(2)
        self.shop.lose(4)
        self.rename()
        refused = [(KITCHEN.id, seq, "front", "no paper", self.name) for seq in (3, 5)]
        run_to_completion(presence.insert_nacks(self.executor, refused))
        self.shop.publish(6, 7)
        found = run_to_completion(
            presence.load_refused_events(self.executor, KITCHEN, [("front", 2)])
        )
        self.assertEqual(found, {"front": {3}})

    def test_the_cursor_of_a_legacy_device_follows_under_the_new_name(self) -> None:
        run_to_completion(cursors.advance_legacy(self.executor, [(1, "front", self.name, 5)]))
        self.shop.lose(3)
        self.shop.admin("UPDATE dinedesk_main.pos_cursors SET acked_seq = 3")
        self.rename()
        now = self.shop.head.stream_id
        run_to_completion(cursors.advance_legacy(self.executor, [(1, "front", self.name, 3)]))
        self.assertEqual(self.shop.cursor(), (3, str(self.name)))
        run_to_completion(cursors.advance_legacy(self.executor, [(1, "front", now, 3)]))
        self.assertEqual(self.shop.cursor(), (3, str(now)))


@define(eq=False)
class Till:
    """A till: its stored events by position, and the stream name of the last one."""

    device: str | None
    names: bool
    """Whether the till sends its position; if not, it relies on its cursor."""
    name: UUID
    seen: list[int]

    def position(self) -> Position:
        return Position(len(self.seen), self.name)


@define
class State:
    """A model of the database's content."""

    log: list[int] = field(factory=list)
    shared: dict[UUID, Seq] = field(factory=dict)
    """For each ended name, the position up to which its events are in the log."""
    doubted: set[UUID] = field(factory=set)
    """Names that were ended at a position below the head."""

    def copy(self) -> State:
        return State([*self.log], {**self.shared}, {*self.doubted})

    def end(self, name: UUID, common: Seq) -> None:
        self.shared[name] = len(self.log)
        self.shared = {each: min(seq, common) for each, seq in self.shared.items()}


class Epochs(RuleBasedStateMachine):
    """Publishes, promotions with and without loss, resets by hand, and tills that come and go."""

    shop: ClassVar[Shop]

    @initialize()
    def begin(self) -> None:
        self.shop.admin(
            "DELETE FROM dinedesk_main.pos_devices; DELETE FROM dinedesk_main.pos_stream_epochs;"
            " INSERT INTO dinedesk_main.pos_stream_epochs (tenant_id, stream_id)"
            " SELECT tenant_id, stream_id FROM dinedesk_main.pos_heads"
        )
        self.shop.lose(0)
        self.state = State()
        self.standby: tuple[State, UUID, list[Any], list[Any], list[Any]] | None = None
        self.number = 0
        self.memory: dict[tuple[str, UUID], Seq] = {}
        name = self.shop.head.stream_id
        # The one that relies on its cursor has acknowledged before.
        self.tills = [Till(None, True, name, []), Till("names", True, name, [])]
        self.tills.append(Till("relies", False, name, []))
        for till in self.tills[1:]:
            self.shop.session_start(till.device, None)
            self.acknowledge(till, 0)

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        numbers = range(self.number, self.number + count)
        self.number += count
        self.shop.publish(*numbers)
        self.state.log += numbers

    @rule(index=st.integers(0, 2), most=st.integers(0, 5), stores=st.booleans())
    def till_comes(self, index: int, most: int, stores: bool) -> None:
        """Send a till a number of events. It may store and acknowledge them."""
        till, log = self.tills[index], self.state.log
        asked = till.position() if till.names else None
        session_start = self.shop.session_start(till.device, asked)
        start, resync = resume(session_start, asked)
        lost = till.seen != log[: len(till.seen)]
        if till.name == session_start.head.stream_id:
            assert not lost
            expected = None
        elif till.name not in self.state.shared:
            # The name itself is lost, so the common position is unknown.
            expected = Resync.RESET
        else:
            beyond = len(till.seen) > self.state.shared[till.name]
            assert beyond == lost or till.name in self.state.doubted
            expected = Resync.RESET if beyond else None
        assert resync is expected, (resync, expected, till, self.state)
        till.name = session_start.head.stream_id
        if resync is not None:
            assert start == len(log)
            till.seen = [*log]
        elif asked is not None:
            assert start == len(till.seen)
        else:
            # Events are delivered at least once, and none is left out.
            assert start <= len(till.seen)
        if till.device is not None and (asked is not None or resync is not None):
            self.acknowledge(till, start)
        sent = self.shop.events(start)
        assert sent == log[start:]
        till.seen = log[: max(len(till.seen), min(start + most, len(log)))]
        if stores and till.device is not None:
            self.acknowledge(till, len(till.seen))

    def acknowledge(self, till: Till, seq: Seq) -> None:
        assert till.device is not None
        run_to_completion(cursors.advance(self.shop.executor, [(1, till.device, till.name, seq)]))

    @rule(index=st.integers(1, 2))
    def what_a_till_said_is_written_late(self, index: int) -> None:
        self.acknowledge(self.tills[index], len(self.tills[index].seen))

    @rule()
    def the_standby_is_left_behind(self) -> None:
        """Detach the standby: it does not receive later commits."""
        books = [
            self.shop.admin(f"SELECT * FROM dinedesk_main.{table} WHERE tenant_id = 1")
            for table in ("pos_stream_epochs", "pos_devices", "pos_cursors")
        ]
        name = self.shop.head.stream_id
        self.standby = (self.state.copy(), name, books[0], books[1], books[2])

    @rule(first=st.sampled_from(["a node looks", "an event is published"]))
    def a_standby_takes_over_that_has_everything(self, first: str) -> None:
        name = self.shop.head.stream_id
        self.shop.promote()
        self.follow(name, first)

    @precondition(lambda self: self.standby is not None)
    @rule(first=st.sampled_from(["a node looks", "an event is published"]))
    def a_standby_takes_over_that_lacks_events(self, first: str) -> None:
        assert self.standby is not None
        self.shop.promote()
        self.follow(self.put_back(), first)

    @rule(
        count=st.integers(1, 3),
        most=st.integers(0, 3),
        index=st.integers(0, 2),
        stores=st.booleans(),
        first=st.sampled_from(["a node looks", "an event is published"]),
    )
    def a_standby_takes_over_that_lacks_the_last_events(
        self, count: int, most: int, index: int, stores: bool, first: str
    ) -> None:
        """A till has seen none, some or all of them."""
        self.till_comes(index, 10, True)
        self.the_standby_is_left_behind()
        self.publish(count)
        self.till_comes(index, most, stores)
        self.a_standby_takes_over_that_lacks_events(first)

    @rule()
    def a_node_says_again_what_it_remembers(self) -> None:
        moves = [(1, device, name, seq, True) for (device, name), seq in self.memory.items()]
        known = [move for move in moves if move[2] in self.state.shared]
        if known:
            run_to_completion(cursors.mark_astray(self.shop.executor, known))

    @precondition(lambda self: self.standby is not None)
    @rule()
    def an_older_state_is_put_back_under_the_same_name(self) -> None:
        """Only a node that has sent positions above the head shows it."""
        assert self.standby is not None
        state, name = self.standby[:2]
        sent = [len(till.seen) for till in self.tills if till.name == name]
        if name != self.shop.head.stream_id or max(sent, default=0) <= len(state.log):
            return
        self.put_back()
        run_to_completion(epochs.begin_new_history(self.shop.executor, [self.shop.head]))
        self.state.end(name, len(self.state.log))
        self.tell()

    @rule(vouched=st.none() | st.integers(0, 8))
    def somebody_resets_it_by_hand(self, vouched: int | None) -> None:
        name, last = self.shop.head.stream_id, len(self.state.log)
        common = min(vouched or 0, last)
        run_to_completion(epochs.reset_streams(self.shop.executor, [1], common))
        self.state.end(name, common)
        if common < last:
            self.state.doubted |= {*self.state.shared}
        self.tell()

    def put_back(self) -> UUID:
        """Make the database what it was when the standby was left behind; the name that it has."""
        assert self.standby is not None
        self.state, name, names, devices, cursors_then = self.standby
        self.standby = None
        self.shop.admin(
            "DELETE FROM dinedesk_main.pos_devices; DELETE FROM dinedesk_main.pos_stream_epochs"
        )
        for table, rows in (
            ("pos_stream_epochs", names),
            ("pos_devices", devices),
            ("pos_cursors", cursors_then),
        ):
            for row in rows:
                places = ", ".join(["%s"] * len(row))
                self.shop.admin(f"INSERT INTO dinedesk_main.{table} VALUES ({places})", *row)
        self.shop.admin("UPDATE dinedesk_main.pos_heads SET stream_id = %s", str(name))
        self.shop.lose(len(self.state.log))
        return name

    def follow(self, name: UUID, first: str) -> None:
        """The database is another one. `name` ends before anything is numbered."""
        if first == "a node looks":
            assert not run_to_completion(epochs.is_same_history(self.shop.executor))
            self.state.end(name, len(self.state.log))
        else:
            self.state.end(name, len(self.state.log))
            self.publish(1)
        assert self.shop.head.stream_id != name
        self.tell()

    def tell(self) -> None:
        """The node stores the positions sent to devices."""
        moves = [
            (1, till.device, till.name, len(till.seen), True)
            for till in self.tills
            if till.device is not None
        ]
        run_to_completion(cursors.mark_astray(self.shop.executor, moves))
        for _, device, name, seq, _ in moves:
            self.memory[device, name] = max(seq, self.memory.get((device, name), 0))


class EpochProperties(SynchronousTestCase):
    def test_who_saw_what_is_lost_reloads_and_nobody_else(self) -> None:
        shop = Shop(migrated_database())
        self.addCleanup(shop.close)
        Epochs.shop = shop
        run_state_machine_as_test(
            Epochs, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
        )
