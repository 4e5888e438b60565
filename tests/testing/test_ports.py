"""Reserved ports."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.ports import reserve


def server(port: int) -> socket.socket:
    """Return a listening socket with the options that Twisted sets."""
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


class ReservedPortTests(SynchronousTestCase):
    def test_a_port_is_reserved_only_once(self) -> None:
        with reserve() as kept, self.assertRaises(OSError):
            reserve(kept.number)

    def test_a_server_can_listen_on_it_and_again_after_a_restart(self) -> None:
        with reserve() as kept:
            for _ in range(2):
                address = "127.0.0.1", kept.number
                with server(kept.number), socket.create_connection(address) as client:
                    self.assertEqual(client.getpeername(), address)

    def test_it_is_free_again_afterwards(self) -> None:
        with reserve() as kept:
            port = kept.number
        with closing(reserve(port)) as again:
            self.assertEqual(again.number, port)

    def test_closed_connections_do_not_keep_a_port(self) -> None:
        with reserve(self.lately_used()) as kept, self.assertRaises(OSError):
            reserve(kept.number)

    def test_a_listening_server_keeps_its_port(self) -> None:
        with server(self.lately_used()) as listening, self.assertRaises(OSError):
            reserve(listening.getsockname()[1])

    def lately_used(self) -> int:
        """Return a port with a connection in TIME-WAIT, because the server closed it first."""
        with server(0) as listening:
            address = listening.getsockname()
            with socket.create_connection(address) as client:
                listening.accept()[0].close()
                self.assertEqual(client.recv(1), b"")
        with socket.socket() as refused, self.assertRaises(OSError):
            refused.bind(address)
        return int(address[1])

    def test_concurrent_reservations_have_different_ports(self) -> None:
        with ExitStack() as stack:
            kept = [stack.enter_context(reserve()) for _ in range(200)]
            self.assertEqual(len({each.number for each in kept}), 200)
