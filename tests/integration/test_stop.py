"""SIGTERM ends posd in every state, and in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from posd.daemon import service
from posd.testing.ports import reserve
from tests.integration.chaos_case import SLUG, ChaosCase, report
from tests.integration.harness import Daemon
from tests.integration.postgres_proxy import Proxy
from tests.integration.wire_case import until

LONGEST = service._FORCED_EXIT_SECONDS + 120
"""Seconds. A stop that nothing holds up takes less than one."""


class SilentServer:
    """A server that accepts connections, answers the first bytes with `greeting`, and sends nothing else."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.greeted = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    def close(self) -> None:
        for each in (self._listening, *self._accepted):
            # shutdown() wakes the thread that is in accept().
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._accepted.append(connection)
                connection.recv(1)
                self.greeted += 1
                connection.sendall(self.greeting)


class StopTests(ChaosCase):
    def silent(self, greeting: bytes = b"") -> SilentServer:
        server = SilentServer(greeting)
        self.addCleanup(server.close)
        return server

    def started(self, dsn: str) -> Daemon:
        posd = self.shop.start(dsn=dsn, wait=False)
        posd.wait_listening()
        return posd

    def ends(self, posd: Daemon, *, hung: bool = False) -> None:
        began = time.monotonic()
        self.assertEqual(posd.stop(LONGEST), 0, posd.log())
        report("SIGTERM → the process has ended", time.monotonic() - began)
        self.assertEqual("did not end within" in posd.log(), hung, posd.log())

    def test_while_it_waits_for_a_database_that_refuses(self) -> None:
        with reserve() as nobody:
            posd = self.started(f"host=127.0.0.1 port={nobody.number} dbname=posd user=postgres")
            until(lambda: "no connection" in posd.log(), "it was refused")
            self.ends(posd)

    def test_while_a_database_accepts_and_never_answers(self) -> None:
        server = self.silent()
        posd = self.started(f"host=127.0.0.1 port={server.port} dbname=posd user=postgres")
        until(lambda: server.greeted > 2, "posd has connected")
        self.ends(posd)

    def test_in_the_middle_of_a_tls_handshake_with_the_database(self) -> None:
        server = self.silent(b"S")
        posd = self.started(
            f"host=127.0.0.1 port={server.port} dbname=posd user=postgres sslmode=require"
        )
        until(lambda: server.greeted > 2, "posd has connected")
        self.ends(posd)

    def test_while_the_database_is_away(self) -> None:
        posd = self.node()
        self.dial(posd)
        self.server.kill()
        until(lambda: "no connection" in posd.log(), "it is noticed")
        self.ends(posd)

    def test_while_statements_hang_and_tills_are_connected(self) -> None:
        """The network to the database drops all packets, without a notification."""
        proxy = Proxy(self.server.folder)
        proxy.start()
        self.addCleanup(proxy.stop)
        posd = self.node(proxy.dsn("posd"))
        self.dial(posd, device="POS_BAR_1")
        key = self.shop.key("platform", SLUG)
        proxy.mute = True
        self.addCleanup(setattr, proxy, "mute", False)
        calls = [
            threading.Thread(target=self.publish_by_rest, args=(posd, key), daemon=True)
            for _ in range(5)
        ]
        for call in calls:
            call.start()
        time.sleep(1)
        self.ends(posd, hung=True)

    def test_while_clients_are_in_the_middle_of_a_handshake(self) -> None:
        posd = self.node()
        for beginning in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"):
            client = socket.create_connection(("127.0.0.1", posd.port))
            self.addCleanup(client.close)
            client.sendall(beginning)
        self.ends(posd)

    def publish_by_rest(self, posd: Daemon, key: str) -> None:
        with contextlib.suppress(OSError):
            posd.request("POST", f"/api/{SLUG}/events", {"type": "note", "data": {}}, key=key)
