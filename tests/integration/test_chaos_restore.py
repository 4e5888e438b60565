"""A database that is restored from an older backup, or replaced by a standby: which tills reload.

A till that has seen lost events is told to reload, if posd can know it: by the fingerprint of the
database (a dump, a copy and a promoted standby have another one), or because the head is before the
delivered events. All other tills resume.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from tests.integration.chaos_case import SLUG, ChaosCase, report
from tests.integration.harness import Daemon
from tests.integration.wire import Till
from tests.integration.wire_case import until

_AT_BACKUP, _LOST, _SINCE = 20, 10, 15


class RestoreCase(ChaosCase):
    """Twenty events are in the backup, ten more are lost, and fifteen are new."""

    def setUp(self) -> None:
        super().setUp()
        self.posd = self.node()

    def live_till(self) -> Till:
        """Connect a till that has received all events, including lost ones, and stays connected."""
        till = self.dial(self.posd, "?last_event_id=0")
        self.ids(till, _AT_BACKUP, 1)
        return till

    def ids(self, till: Till, count: int, first: int) -> None:
        taken = [each["id"] for each in till.take(count)]
        self.assertEqual(taken, list(range(first, first + count)))

    def assert_told(self, posd: Daemon, stream: str) -> None:
        """Assert that exactly the tills with lost events are told to reload."""
        self.assertNotEqual(self.stream(), stream)
        for position in (0, _AT_BACKUP - 5, _AT_BACKUP):
            till = self.dial_again(posd, f"?last_event_id={position}&stream_id={stream}")
            said = till.connected
            self.assertEqual((said["resync"], said["resumedFrom"]), (None, position))
            self.ids(till, self.head() - position, position + 1)
            till.leave()
        for position in (_AT_BACKUP + 1, _AT_BACKUP + _LOST, 10_000):
            till = self.dial_again(posd, f"?last_event_id={position}&stream_id={stream}")
            said = till.connected
            self.assertEqual((said["resync"], said["resumedFrom"]), ("reset", None))
            self.assertEqual(said["lastEventId"], self.head())
            self.publish(1)
            self.assertEqual(till.receive()["id"], said["lastEventId"] + 1)
            till.leave()

    def assert_sent_away(self, till: Till, began: float) -> None:
        """A till that was connected is told by the end of its connection, and got nothing since."""
        ended = till.ended()
        report("older backup restored → connected tills sent away", time.monotonic() - began)
        self.assertIn(ended.code, (1001, 1006))
        # `connected` and every event of the lost stream, and no new event.
        self.assertEqual(len(till.frames), 1 + _AT_BACKUP + _LOST)


class LogicalTests(RestoreCase):
    """A copy replaces the database, like a dump that was loaded."""

    def admin(self, *statements: str) -> None:
        with closing(psycopg2.connect(self.server.dsn())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    def alone(self, *statements: str) -> None:
        """Run statements that require that the database has no connections."""
        self.admin(
            "ALTER DATABASE posd ALLOW_CONNECTIONS false",
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = 'posd'",
            *statements,
            "ALTER DATABASE posd ALLOW_CONNECTIONS true",
        )

    def back_up(self) -> None:
        self.alone("CREATE DATABASE backup TEMPLATE posd")

    def restore(self) -> None:
        self.alone(
            "ALTER DATABASE posd RENAME TO lost",
            "ALTER DATABASE backup RENAME TO posd",
        )

    def test_while_posd_runs(self) -> None:
        self.publish(_AT_BACKUP)
        till = self.live_till()
        self.back_up()
        self.publish(_LOST)
        self.ids(till, _LOST, _AT_BACKUP + 1)
        stream = till.connected["streamId"]
        began = time.monotonic()
        self.restore()
        # At once beyond the positions of the tills, because the stream id decides.
        self.publish(_SINCE)
        self.assert_sent_away(till, began)
        self.assert_told(self.posd, stream)

    def test_while_posd_does_not_run(self) -> None:
        self.publish(_AT_BACKUP)
        stream = self.live_till().connected["streamId"]
        self.back_up()
        self.publish(_LOST)
        self.assertEqual(self.posd.stop(), 0)
        self.restore()
        self.again(self.posd)
        self.publish(_SINCE)
        self.assert_told(self.posd, stream)

    def test_a_named_till_that_relies_on_posd_is_told_what_the_backup_does_not_know(self) -> None:
        till = self.dial(self.posd, "?last_event_id=0", device="POS_BAR_1")
        self.publish(_AT_BACKUP)
        self.ids(till, _AT_BACKUP, 1)
        till.send({"type": "ack", "id": _AT_BACKUP})
        acked = "SELECT acked_seq FROM dinedesk_main.pos_cursors"
        until(lambda: self.shop.query(acked) == [(_AT_BACKUP,)], "the ack is in the books")
        self.back_up()
        self.publish(_LOST)
        self.ids(till, _LOST, _AT_BACKUP + 1)
        till.send({"type": "ack", "id": _AT_BACKUP + _LOST})
        wanted = [(_AT_BACKUP + _LOST,)]
        until(lambda: self.shop.query(acked) == wanted, "the ack is in the books")
        self.restore()
        self.publish(_SINCE)
        again = self.dial_again(self.posd, device="POS_BAR_1")
        self.assertEqual(
            (again.connected["resync"], again.connected["resumedFrom"]), ("reset", None)
        )
        again.leave()
        with self.subTest("once"):
            again = self.dial_again(self.posd, device="POS_BAR_1")
            self.assertIsNone(again.connected["resync"])

    def test_a_named_till_that_has_nothing_of_what_is_lost_goes_on(self) -> None:
        till = self.dial(self.posd, "?last_event_id=0", device="POS_BAR_1")
        self.publish(_AT_BACKUP)
        self.ids(till, _AT_BACKUP, 1)
        till.send({"type": "ack", "id": _AT_BACKUP - 5})
        acked = "SELECT acked_seq FROM dinedesk_main.pos_cursors"
        until(lambda: self.shop.query(acked) == [(_AT_BACKUP - 5,)], "the ack is in the books")
        till.leave()
        self.back_up()
        self.publish(_LOST)
        self.restore()
        self.publish(_SINCE)
        again = self.dial_again(self.posd, device="POS_BAR_1")
        self.assertEqual(again.connected["resumedFrom"], _AT_BACKUP - 5)
        self.ids(again, _SINCE + 5, _AT_BACKUP - 4)


class DataFolderCase(RestoreCase):
    def data(self) -> Path:
        return self.server.folder / "data"

    def down(self) -> None:
        """Kill PostgreSQL, and wait for the end of its last process."""
        self.server.kill()
        until(lambda: not self.processes(), "all backends are gone")

    def processes(self) -> list[Path]:
        found = []
        for process in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if process.readlink() == self.data():
                    found.append(process)
            except OSError:
                continue
        return found

    def keep(self) -> Path:
        """Copy the data directory as it is now."""
        backup = self.server.folder / "backup"
        self.down()
        subprocess.run(["cp", "-a", self.data(), backup], check=True)
        self.server.restart()
        return backup

    def put_back(self, backup: Path) -> None:
        self.down()
        subprocess.run(["rm", "-rf", self.data()], check=True)
        subprocess.run(["cp", "-a", backup, self.data()], check=True)


class PhysicalTests(DataFolderCase):
    """The data directory is restored. The database itself has no sign of it."""

    def test_while_posd_runs(self) -> None:
        self.publish(_AT_BACKUP)
        till = self.live_till()
        stream = till.connected["streamId"]
        backup = self.keep()
        self.publish(_LOST)
        self.ids(till, _LOST, _AT_BACKUP + 1)
        self.put_back(backup)
        began = time.monotonic()
        self.server.restart()
        self.assert_sent_away(till, began)
        self.publish(_SINCE)
        self.assert_told(self.posd, stream)

    def test_a_till_beyond_the_head_is_told_by_whoever_does_not_know(self) -> None:
        self.publish(_AT_BACKUP)
        stream, position = self.stream(), _AT_BACKUP + _LOST
        till = self.dial(self.posd, f"?last_event_id={position}&stream_id={stream}")
        self.assertEqual(till.connected["resync"], "ahead")
        self.publish(_SINCE)
        self.ids(till, _SINCE, _AT_BACKUP + 1)


class PromotionTests(DataFolderCase):
    """A standby takes over."""

    def promote(self) -> None:
        """Make the data directory that of a standby, and promote it."""
        (self.data() / "standby.signal").touch()
        self.server.restart()
        with closing(psycopg2.connect(self.server.dsn())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_promote()")

    def poll(self, query: str) -> dict[str, Any]:
        def answered() -> dict[str, Any] | None:
            reply = self.posd.request(
                "GET", f"/api/{SLUG}/events?{query}", headers={"X-API-Key": self.key}
            )
            return reply.json if reply.status == 200 else None

        found = until(answered, "a poll is answered", 300)
        assert found is not None
        return found

    def test_that_has_everything(self) -> None:
        """The till is at position 3 of 5: it receives the events 4 and 5 without a reload."""
        first = self.dial(self.posd, "?last_event_id=0", device="POS_BAR_1")
        legacy, live = self.dial(self.posd), self.dial(self.posd, "?last_event_id=0")
        stream = live.connected["streamId"]
        self.publish(5)
        for till in (first, legacy, live):
            self.ids(till, 5, 1)
        first.send({"type": "ack", "id": 3})
        acked = "SELECT acked_seq FROM dinedesk_main.pos_cursors"
        until(lambda: self.shop.query(acked) == [(3,)], "the ack is in the books")
        first.leave()
        self.down()
        self.promote()
        ended = live.ended()
        self.assertEqual((ended.code, ended.reason), (1001, "the stream has a new name"))
        self.publish(1)
        self.assertNotEqual(self.stream(), stream)

        for query, device in ((f"?last_event_id=3&stream_id={stream}", None), ("", "POS_BAR_1")):
            with self.subTest(device=device):
                till = self.dial_again(self.posd, query, device)
                said = till.connected
                self.assertEqual((said["resync"], said["resumedFrom"]), (None, 3))
                self.assertEqual(said["streamId"], self.stream())
                self.ids(till, 3, 4)
        with self.subTest("a poll"):
            batch = self.poll(f"after=3&stream_id={stream}")
            self.assertIsNone(batch["resync"])
            self.assertEqual([each["id"] for each in batch["events"]], [4, 5, 6])
            self.assertEqual(batch["streamId"], self.stream())
        with self.subTest("a deployed till stays"):
            self.ids(legacy, 1, 6)

    def test_that_lacks_events(self) -> None:
        """Tills with lost events reload, and the others resume."""
        self.publish(_AT_BACKUP)
        till = self.live_till()
        stream = till.connected["streamId"]
        named = self.dial(self.posd, f"?last_event_id={_AT_BACKUP}", device="POS_BAR_1")
        spoken = "SELECT first_acked_at IS NOT NULL FROM dinedesk_main.pos_devices"
        until(lambda: self.shop.query(spoken) == [(True,)], "the ack is in the books")
        backup = self.keep()
        self.publish(_LOST)
        self.ids(till, _LOST, _AT_BACKUP + 1)
        self.ids(named, _LOST, _AT_BACKUP + 1)
        self.put_back(backup)
        began = time.monotonic()
        self.promote()
        self.publish(_SINCE)
        self.assert_sent_away(till, began)
        self.assert_told(self.posd, stream)
        with self.subTest("one that relies on posd, whose cursor shows nothing of it"):
            again = self.dial_again(self.posd, device="POS_BAR_1")
            self.assertEqual(again.connected["resync"], "reset")
