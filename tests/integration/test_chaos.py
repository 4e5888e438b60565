"""Failures under load: the failed part recovers, and tills notice only a pause."""

from __future__ import annotations

import time

from tests.integration.chaos_case import LIMITS, SLUG, ChaosCase, report
from tests.integration.harness import TWISTD
from tests.integration.postgres_proxy import Proxy
from tests.integration.wire import Refused, Till
from tests.integration.wire_case import until


class ProcessTests(ChaosCase):
    """posd is killed."""

    def test_posd_is_killed_and_started_again(self) -> None:
        posd = self.node()
        load = self.busy(posd)

        def calamity() -> None:
            posd.kill()
            # What this reports has a whole start in it.
            self.again(posd, TWISTD)

        self.survives(load, "posd kill -9", calamity)

    def test_one_of_two_nodes_is_killed_and_does_not_come_back(self) -> None:
        doomed, posd = self.node(), self.node()
        load = self.busy(doomed, posd)
        self.survives(load, "one node of two kill -9", doomed.kill)

    def test_posd_is_restarted_as_for_an_upgrade(self) -> None:
        posd = self.node()
        load = self.busy(posd)

        def calamity() -> None:
            self.assertEqual(posd.stop(), 0)
            # What this reports has a whole start in it.
            self.again(posd, TWISTD)

        self.survives(load, "posd SIGTERM and start", calamity)


class ServerTests(ChaosCase):
    """PostgreSQL stops, and restarts with all committed data."""

    def test_postgresql_is_restarted(self) -> None:
        load = self.busy(self.node())
        self.survives(load, "PostgreSQL restart, fast", lambda: self.server.restart("fast"))

    def test_postgresql_is_stopped_at_once(self) -> None:
        load = self.busy(self.node())
        self.survives(
            load, "PostgreSQL restart, immediate", lambda: self.server.restart("immediate")
        )

    def test_postgresql_is_killed(self) -> None:
        load = self.busy(self.node(), self.node())

        def calamity() -> None:
            self.server.kill()
            self.server.restart()

        self.survives(load, "PostgreSQL kill -9, two nodes", calamity)

    def test_posd_starts_without_a_database_and_waits_for_it(self) -> None:
        self.server.kill()
        posd = self.shop.start(LIMITS, wait=False)
        posd.wait_listening()
        with self.assertRaises(Refused) as raised:
            self.dial(posd)
        self.assertEqual(raised.exception.status, 503)
        self.assertIn("retry-after", raised.exception.headers)
        self.server.restart()
        began = time.monotonic()
        till = self.dial_again(posd)
        report("PostgreSQL there at last → the first till let in", time.monotonic() - began)
        self.publish(1)
        self.assertEqual(till.receive()["id"], 1)


class BackendTests(ChaosCase):
    """Connections to PostgreSQL end."""

    def test_the_one_that_listens(self) -> None:
        load = self.busy(self.node())
        self.survives(
            load,
            "the listening backend terminated",
            lambda: self.assertEqual(self.terminate("posd feed"), 1),
        )

    def test_the_one_that_numbers(self) -> None:
        load = self.busy(self.node())
        self.survives(
            load,
            "the sequencer's backend terminated",
            lambda: self.assertEqual(self.terminate("posd sequencer"), 1),
        )

    def test_all_of_them_over_and_over(self) -> None:
        load = self.busy(self.node(), self.node())

        def calamity() -> None:
            for _ in range(5):
                self.assertGreater(self.terminate("posd%"), 2)
                load.past(load.head())

        self.survives(load, "all backends of two nodes terminated, five times", calamity)


class NotifyTests(ChaosCase):
    """NOTIFY is a hint: without it everything works, a little later."""

    def setUp(self) -> None:
        super().setUp()
        self.proxy = Proxy(self.server.folder)
        self.proxy.start()
        self.addCleanup(self.proxy.stop)
        self.posd = self.node(self.proxy.dsn("posd"))

    def test_every_notify_is_lost(self) -> None:
        load = self.busy(self.posd)

        def calamity() -> None:
            self.proxy.deaf = True
            load.past(load.head())
            # An awake doorman is not notified, so there may be no notification otherwise.
            self.shop.query("NOTIFY posd_outbox")

        self.survives(load, "every NOTIFY lost", calamity)
        until(lambda: self.proxy.lost > 0, "a notification is lost")

    def test_posd_notices_and_listens_anew(self) -> None:
        till = self.dial(self.posd)
        self.proxy.deaf = True
        began = time.monotonic()
        until(lambda: "NOTIFY does not arrive" in self.posd.log(), "the canary is missed", 300)
        report("every NOTIFY lost → noticed", time.monotonic() - began)
        self.proxy.deaf = False
        self.publish(1)
        self.assertEqual(till.receive()["id"], 1)


class NodesTests(ChaosCase):
    """Two nodes that share only the database."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.other = self.node(), self.node()

    def connected(self) -> int:
        ((count,),) = self.shop.query("SELECT count(*) FROM dinedesk_main.pos_connected")
        return int(count)

    def entered(self, till: Till) -> None:
        """Wait until a connection is stored in the database, where other nodes find it."""
        known = "SELECT 1 FROM dinedesk_main.pos_connections WHERE connection_id = %s::uuid"
        mine = (till.connected["connectionId"],)
        until(lambda: self.shop.query(known, mine), "it is in the books")

    def test_a_device_that_connects_elsewhere_displaces_its_old_connection(self) -> None:
        for first, second in ((self.one, self.other), (self.other, self.one)):
            old = self.dial(first, device="POS_BAR_1")
            self.entered(old)
            new = self.dial(second, device="POS_BAR_1")
            new.send({"type": "pong"})
            began = time.monotonic()
            self.assertEqual(old.ended().code, 4009)
            report("a device on another node → the old one closed", time.monotonic() - began)
            self.assertTrue(new.next_is_pong(1))
            new.leave()

    def test_a_publisher_is_told_of_the_tills_of_both(self) -> None:
        tills = [self.dial(posd) for posd in (self.one, self.one, self.other)]
        until(lambda: self.connected() == 3, "all are in the books")
        key = self.shop.key("platform", SLUG)
        for posd in (self.one, self.other):
            body = {"type": "note", "data": {}}
            reply = posd.request("POST", f"/api/{SLUG}/events", body, key=key)
            self.assertEqual((reply.status, reply.json["connections"]), (201, 3))
        for till in tills:
            self.assertEqual([each["id"] for each in till.take(2)], [1, 2])

    def test_a_dead_nodes_presence_disappears(self) -> None:
        for posd in (self.one, self.one, self.other):
            self.dial(posd)
        until(lambda: self.connected() == 3, "all are in the books")
        began = time.monotonic()
        self.one.kill()
        until(lambda: self.connected() == 1, "those of the dead node are gone", 300)
        report("a node kill -9 → its tills out of the books", time.monotonic() - began)

    def test_a_device_of_a_dead_node_goes_on_at_another(self) -> None:
        till = self.dial(self.one, "?last_event_id=0", device="POS_BAR_1")
        self.publish(5)
        till.take(5)
        till.send({"type": "ack", "id": 3})
        acked = (
            "SELECT acked_seq FROM dinedesk_main.pos_cursors"
            "  JOIN dinedesk_main.pos_devices USING (tenant_id, device_id)"
            " WHERE first_acked_at IS NOT NULL"
        )
        until(lambda: self.shop.query(acked) == [(3,)], "the ack is in the books")
        self.one.kill()
        again = self.dial(self.other, device="POS_BAR_1")
        self.assertEqual(again.connected["resumedFrom"], 3)
        self.assertEqual([each["id"] for each in again.take(2)], [4, 5])
        self.assertTrue(again.next_is_pong(1))
