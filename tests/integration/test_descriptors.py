"""Without free file descriptors posd neither spins nor ends, and recovers when descriptors are free."""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path

from tests.integration.chaos_case import ChaosCase, report
from tests.integration.wire import Ended, Refused
from tests.integration.wire_case import until


class DescriptorTests(ChaosCase):
    def setUp(self) -> None:
        super().setUp()
        self.posd = self.node()
        self.limits = resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE)
        self.crowd: list[socket.socket] = []
        self.addCleanup(self.give_back)

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.posd.pid}/fd").iterdir()))

    def use_up(self) -> None:
        """Leave a few descriptors to the daemon, and use them with silent connections."""
        few = self.open_files() + 5
        resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE, (few, self.limits[1]))
        for _ in range(40):
            self.connect()
        until(lambda: self.open_files() >= few - 1, "they are used up")

    def connect(self) -> None:
        connection = socket.create_connection(("127.0.0.1", self.posd.port), timeout=300)
        self.addCleanup(connection.close)
        self.crowd.append(connection)

    def give_back(self) -> None:
        for connection in self.crowd:
            connection.close()
        if self.posd.process.poll() is None:
            resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE, self.limits)

    def cpu_seconds(self) -> float:
        """Return the seconds of processor time of the daemon so far."""
        fields = Path(f"/proc/{self.posd.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def busy_for(self, seconds: float) -> float:
        """Return the share of a processor that the daemon uses in the next seconds."""
        before, began = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        used = (self.cpu_seconds() - before) / (time.monotonic() - began)
        report("the part of a processor that is used without descriptors", used)
        return used

    def test_tills_that_are_there_are_served_and_others_afterwards(self) -> None:
        till = self.dial(self.posd)
        self.use_up()
        # Some connections wait in the backlog and cannot be accepted. The reactor is notified continuously.
        self.assertLess(self.busy_for(1.5), 0.7)
        self.publish(1)
        self.assertEqual(till.receive()["id"], 1)
        with self.assertRaises((Refused, Ended, OSError)):
            self.dial(self.posd)
        self.assertIsNone(self.posd.process.poll())
        self.give_back()
        other = self.dial_again(self.posd)
        self.publish(1)
        self.assertEqual((till.receive()["id"], other.receive()["id"]), (2, 2))

    def allow_none(self) -> None:
        """Let no file be opened any more, even after others are closed."""
        resource.prlimit(self.posd.pid, resource.RLIMIT_NOFILE, (3, self.limits[1]))

    def test_where_not_even_the_reserve_can_be_used_clients_wait_and_posd_rests(self) -> None:
        till = self.dial(self.posd)
        self.allow_none()
        self.connect()
        until(lambda: "new connections wait" in self.posd.log(), "it is told")
        self.assertLess(self.busy_for(1.5), 0.7)
        self.assertEqual(self.posd.log().count("new connections wait"), 1)
        self.publish(1)
        self.assertEqual(till.receive()["id"], 1)
        self.give_back()
        self.dial_again(self.posd)

    def test_connections_to_the_database_heal_when_there_are_descriptors_again(self) -> None:
        till = self.dial(self.posd)
        self.allow_none()
        self.assertGreater(self.terminate("posd%"), 2)
        until(lambda: "Too many open files" in self.posd.log(), "a link could not connect")
        self.assertNotIn("Traceback", self.posd.log())
        self.give_back()
        self.posd.wait_ready()
        self.publish(1)
        self.assertEqual(till.receive()["id"], 1)
        self.assertEqual(self.posd.stop(), 0)
