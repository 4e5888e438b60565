"""A connection string with several hosts: the daemon follows the host that accepts writes."""

from __future__ import annotations

import socket
import time
from typing import Any

from posd.testing.postgres import PostgresServer, test_server
from tests.integration.chaos_case import SLUG, ChaosCase, report
from tests.integration.harness import Shop, free_port
from tests.integration.wire_case import until

AWAY_SECONDS = 4.0
"""Seconds that the first host is down: enough for several rounds over all hosts."""
TIMES = 2
STOP_SECONDS = 120.0


class SeveralHostsTests(ChaosCase):
    """`host=a,b target_session_attrs=read-write`, both over TCP as in a cluster."""

    def setUp(self) -> None:
        self.port = free_port()
        self.server = self.new_server(self.port)
        self.shop = Shop.open([SLUG], server=self.server)
        self.addCleanup(self.shop.close)
        self.key = self.shop.key()

    def new_server(self, port: int, **settings: str) -> PostgresServer:
        server = test_server().another(
            durable=True,
            settings={"listen_addresses": "127.0.0.1", "port": str(port), **settings},
        )
        self.addCleanup(server.stop)
        return server

    def dsn(self, *ports: int) -> str:
        hosts, numbers = ",".join(["127.0.0.1"] * len(ports)), ",".join(map(str, ports))
        return (
            f"host={hosts} port={numbers} dbname=posd user=postgres target_session_attrs=read-write"
        )

    def goes_on(self, dsn: str, times: int = TIMES) -> None:
        """Kill PostgreSQL several times. A connected till receives its orders afterwards."""
        posd = self.node(dsn)
        till = self.dial(posd)
        for number in range(1, times + 1):
            self.server.kill()
            time.sleep(AWAY_SECONDS)
            self.server.restart()
            began = time.monotonic()
            posd.wait_ready()
            report("the first of two hosts killed → ready", time.monotonic() - began)
            self.shop.query("SELECT dinedesk_main.pos_publish(%s, 'note', '{}')", (SLUG,))
            self.assertEqual(self.received(till)["id"], number)
        self.assertEqual(posd.stop(STOP_SECONDS), 0)

    def received(self, till: Any) -> Any:
        return until(till.receive, "the till gets the event", 300)

    def test_the_second_host_refuses(self) -> None:
        self.goes_on(self.dsn(self.port, free_port()))

    def test_the_second_host_is_one_that_cannot_be_written_to(self) -> None:
        """A standby, from the point of view of libpq: it asks each server, and tries the next one."""
        other = free_port()
        self.new_server(other, default_transaction_read_only="on")
        self.goes_on(self.dsn(self.port, other))

    def test_the_machine_of_the_first_host_is_off(self) -> None:
        self.goes_on(self.dsn(self.silent_port(), self.port), times=1)

    def silent_port(self) -> int:
        """Return a port that does not answer at all: a full backlog drops every SYN (Linux)."""
        listening = socket.socket()
        self.addCleanup(listening.close)
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            queued = socket.socket()
            self.addCleanup(queued.close)
            queued.setblocking(False)
            queued.connect_ex(listening.getsockname())
        return int(listening.getsockname()[1])

    def test_the_first_host_refuses(self) -> None:
        self.goes_on(self.dsn(free_port(), self.port))
