"""A real primary and its standby: the standby is promoted under load, and posd follows.

`tests.failover` does the same with Patroni, for as long as wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Final

import psycopg2
from attrs import evolve
from psycopg2.extensions import make_dsn, parse_dsn

from posd.database import migrations
from posd.testing.postgres import PostgresServer, test_server
from tests.failover.verdict import Verdict
from tests.integration.chaos_case import LIMITS, SLUG, ChaosCase
from tests.integration.harness import Daemon, Reply, Shop, free_port
from tests.integration.load import Load
from tests.integration.load_roads import ALL_KINDS, CONFIGURATION
from tests.integration.postgres_proxy import Proxy
from tests.integration.wire import Till
from tests.integration.wire_case import until


def query(
    server: PostgresServer, sql: str, *parameters: object, dbname: str = "postgres"
) -> list[Any]:
    """Run a statement as the superuser of this server. Return its rows, if it has any."""
    with closing(psycopg2.connect(server.dsn(dbname))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []


def configure(server: PostgresServer, name: str, value: str) -> None:
    query(server, f"ALTER SYSTEM SET {name} = '{value}'")
    query(server, "SELECT pg_reload_conf()")


_AWAY_SECONDS: Final = 0.02


class FailoverCase(ChaosCase):
    """A shop on a primary with a standby, and a connection string that names both."""

    def setUp(self) -> None:
        ports = (free_port(), free_port())
        # A confirmed commit is at least in the kernel, which suffices without a power failure.
        confirmed = {"synchronous_commit": "on", "listen_addresses": "127.0.0.1"}
        self.server = test_server().another(settings={**confirmed, "port": str(ports[0])})
        self.addCleanup(self.server.stop)
        self.shop = Shop.open([SLUG], server=self.server)
        self.addCleanup(self.shop.close)
        self.key = self.shop.key()
        self.standby = self.server.standby({"port": str(ports[1])})
        self.addCleanup(self.standby.stop)
        ((self.upstream,),) = query(self.standby, "SHOW primary_conninfo")
        self.wait_for_standby("streaming")
        self.shop.dsn = make_dsn(
            host="127.0.0.1,127.0.0.1",
            port=",".join(map(str, ports)),
            dbname="posd",
            user="postgres",
            target_session_attrs="read-write",
        )

    def node(self, dsn: str | None = None) -> Daemon:
        return self.shop.start(f"{LIMITS}\n{CONFIGURATION}", dsn=dsn)

    def wait_for_standby(self, *states: str, sync_state: str = "async") -> None:
        """Wait until the primary sees the standby in this state, or does not see it."""
        wanted = [(state, sync_state) for state in states]
        seen = "SELECT state, sync_state FROM pg_stat_replication"
        until(lambda: query(self.server, seen) == wanted, f"the standby is {wanted}", 300)

    def replicate_synchronously(self) -> None:
        configure(self.server, "synchronous_standby_names", "*")
        self.wait_for_standby("streaming", sync_state="sync")

    def move_standby_away(self, seconds: float) -> Proxy:
        """Delay the standby's messages, including its confirmations, by so much."""
        port = int(parse_dsn(self.shop.dsn)["port"].split(",")[0])
        proxy = Proxy(self.server.folder, port, delay=seconds)
        proxy.start()
        self.addCleanup(proxy.stop)
        # PostgreSQL may run as another account.
        for path, mode in (
            (proxy.folder, 0o711),
            *((each, 0o777) for each in proxy.folder.iterdir()),
        ):
            path.chmod(mode)
        configure(self.standby, "primary_conninfo", proxy.dsn("postgres"))
        return proxy

    def cut_replication(self) -> None:
        configure(self.standby, "primary_conninfo", "")
        self.wait_for_standby()

    def resume_replication(self) -> None:
        configure(self.standby, "wal_retrieve_retry_interval", "100ms")
        configure(self.standby, "primary_conninfo", self.upstream.replace("'", "''"))

    def wait_for_replay(self) -> None:
        ((written,),) = query(self.server, "SELECT pg_current_wal_lsn()::text")
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
        until(lambda: query(self.standby, replayed) == [(True,)], "the standby has it all", 300)

    def fail_over(self) -> None:
        """Kill the primary for good, and promote the standby."""
        self.server.kill()
        self.standby.promote()

    def busy_with_all(self, *nodes: Daemon) -> Load:
        """Start writers of all kinds, and tills of all transports, with a device id and without."""
        load = Load(self.shop, SLUG, nodes)
        self.addCleanup(load.abort)
        load.start(4, 6, kinds=ALL_KINDS, pace=0.04)
        load.past(20)
        return load


class BootstrapTests(FailoverCase):
    """A database is created while the standby, which is asked first, is behind."""

    def test_bootstrap_waits_until_the_standby_knows_the_new_database(self) -> None:
        names = parse_dsn(self.shop.dsn)
        dsn = make_dsn(
            self.shop.dsn, dbname="another", port=",".join(reversed(names["port"].split(",")))
        )
        query(self.standby, "SELECT pg_wal_replay_pause()")
        there = "SELECT 1 FROM pg_database WHERE datname = 'another'"
        with ThreadPoolExecutor(1) as threads:
            made = threads.submit(migrations.bootstrap, dsn)
            until(lambda: query(self.server, there), "the database is made", 300)
            query(self.standby, "SELECT pg_wal_replay_resume()")
            self.assertTrue(made.result(300))


class SynchronousTests(FailoverCase):
    """The standby confirms each COMMIT: nothing that was acknowledged is lost."""

    def setUp(self) -> None:
        super().setUp()
        self.replicate_synchronously()

    def test_a_promotion_under_load_loses_moves_and_repeats_nothing(self) -> None:
        """The standby has a long round-trip time."""
        self.move_standby_away(_AWAY_SECONDS)
        self.wait_for_standby("streaming", sync_state="sync")
        posd = self.node()
        load = self.busy_with_all(posd)
        self.survives(load, "primary kill -9, its synchronous standby promoted", self.fail_over)
        self.assertIsNone(posd.process.poll(), "posd had to be started again")
        self.assertEqual(load.resyncs(), [], f"seed {load.seed}")

    def test_tills_that_saw_only_what_has_survived_go_on(self) -> None:
        posd = self.node()
        till = self.dial(posd, "?last_event_id=0", device="POS_BAR_1")
        self.publish(5)
        till.take(3)
        stream = till.connected["streamId"]
        till.hang_up()
        self.fail_over()
        posd.wait_ready()
        again = self.dial_again(posd, f"?last_event_id=3&stream_id={stream}", device="POS_BAR_1")
        greeting = again.connected
        self.assertEqual((greeting["resync"], greeting["resumedFrom"]), (None, 3))
        self.assertEqual([each["id"] for each in again.take(2)], [4, 5])

    def test_what_the_standby_has_not_confirmed_is_neither_acknowledged_nor_delivered(self) -> None:
        posd = self.node()
        till = self.dial(posd)
        key = self.shop.key("platform", SLUG)

        def publish() -> Reply:
            body = {"type": "note", "data": {}}
            return posd.request(
                "POST", f"/api/{SLUG}/events", body, key=key, headers={"Idempotency-Key": "one"}
            )

        self.cut_replication()
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = 'posd'"
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(publish)
            until(lambda: query(self.server, waits), "the COMMIT waits for the standby", 300)
            self.assertTrue(till.next_is_pong(1))
            self.assertFalse(answer.done())
            self.resume_replication()
            reply = answer.result(300)
        # After ten seconds posd answers that it does not know; then the same call is made again.
        self.assertIn(reply.status, (201, 503))
        until(lambda: publish().status in (200, 201), "it is confirmed", 300)
        self.assertEqual(till.receive()["id"], 1)
        self.assertTrue(till.next_is_pong(2))


class AsynchronousTests(FailoverCase):
    """The standby is behind, and its missing data is lost with the primary."""

    def setUp(self) -> None:
        super().setUp()
        self.posd = self.node()
        self.behind = self.follow("POS_BAR_1")
        self.ahead, self.unnamed = self.follow("POS_BAR_2"), self.follow()
        self.publish(3)
        self.stream_id = self.behind.connected["streamId"]
        self.sees([self.behind, self.ahead, self.unnamed], 1, 3)
        self.behind.hang_up()
        # The standby knows the device. A device whose first acknowledgement is lost is new to it.
        self.ahead.send({"type": "ack", "id": 3})
        acked = "SELECT 1 FROM dinedesk_main.pos_cursors WHERE device_id = 'POS_BAR_2' AND acked_seq = 3"
        until(
            lambda: query(self.server, acked, dbname="posd"), "the acknowledgement is written", 40
        )
        self.wait_for_replay()
        self.cut_replication()
        self.publish(2)
        self.sees([self.ahead, self.unnamed], 4, 5)
        self.ahead.send({"type": "ack", "id": 5})
        self.assertTrue(self.ahead.next_is_pong(1))
        for till in (self.ahead, self.unnamed):
            till.hang_up()
        self.fail_over()
        self.posd.wait_ready()
        self.publish(3)

    def follow(self, device: str | None = None) -> Till:
        return self.dial(self.posd, "?last_event_id=0", device)

    def sees(self, tills: Sequence[Till], first: int, last: int) -> None:
        for till in tills:
            ids = [each["id"] for each in till.take(last - first + 1)]
            self.assertEqual(ids, list(range(first, last + 1)))

    def goes_on(self, position: int, device: str | None = None) -> Till:
        return self.dial_again(
            self.posd, f"?last_event_id={position}&stream_id={self.stream_id}", device
        )

    def test_tills_that_saw_what_is_lost_load_everything_anew_and_no_others(self) -> None:
        for position, device in (
            ("", "POS_BAR_2"),
            ("?last_event_id=5", "POS_BAR_2"),
            ("?last_event_id=5", None),
        ):
            with self.subTest(position=position, device=device):
                query = position and f"{position}&stream_id={self.stream_id}"
                greeting = self.dial_again(self.posd, query, device).connected
                self.assertEqual((greeting["resync"], greeting["resumedFrom"]), ("reset", None))
                self.assertNotEqual(greeting["streamId"], self.stream_id)
        till = self.goes_on(3, "POS_BAR_1")
        self.assertIsNone(till.connected["resync"])
        self.sees([till], 4, 6)


class AsynchronousLoadTests(FailoverCase):
    """The same with tills of all transports, which come and go on two nodes while events are lost."""

    def test_the_tills_that_saw_what_is_lost_are_told_and_no_others(self) -> None:
        nodes = self.node(), self.node()
        load = self.busy_with_all(*nodes)
        self.wait_for_replay()
        self.cut_replication()
        load.past(load.head() + 20)
        self.fail_over()
        until(lambda: self.went_on(load), "every till has come back", 300)
        load.finish()
        self.assertEqual([node.process.poll() for node in nodes], [None, None])
        verdict = Verdict.over(load, [each for rover in load.rovers for each in rover.faults])
        self.assertGreater(verdict.lost, 0)
        self.assertEqual(
            evolve(verdict, events=0, confirmed=0, lost=0, missed=0),
            Verdict(*(0,) * 8, []),
            f"seed {load.seed}: {self.visits(load)}",
        )
        self.assertNotEqual(load.resyncs(), [])

    def visits(self, load: Load) -> str:
        """Return what each till received, for each connection."""
        return "\n".join(
            f"till {number} ({rover.transport}, {'named' if rover.named else 'unnamed'}): "
            + "; ".join(
                f"{each.resumed} {each.resync} in {each.stream[:4]}"
                f"{' by cursor' if each.by_cursor else ''}: "
                + (f"{each.received[0][0]}-{each.received[-1][0]}" if each.received else "nothing")
                for each in rover.visits
            )
            for number, rover in enumerate(load.rovers)
        )

    def went_on(self, load: Load) -> bool:
        try:
            stream = self.stream()
        except psycopg2.Error:
            return False
        return all(rover.visits[-1].stream == stream for rover in load.rovers) and load.head() > 0
