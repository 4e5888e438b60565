"""Ports that are kept for a server."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.ports import number, reserve


def server(port: int) -> socket.socket:
    """A server as Twisted makes it."""
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
    def test_nobody_else_can_reserve_it(self) -> None:
        with reserve() as kept, self.assertRaises(OSError):
            reserve(number(kept))

    def test_a_server_can_listen_on_it_and_again_after_a_restart(self) -> None:
        with reserve() as kept:
            for _ in range(2):
                address = "127.0.0.1", number(kept)
                with server(number(kept)), socket.create_connection(address) as client:
                    self.assertEqual(client.getpeername(), address)

    def test_it_is_free_again_afterwards(self) -> None:
        with reserve() as kept:
            port = number(kept)
        with closing(reserve(port)) as again:
            self.assertEqual(number(again), port)

    def test_many_at_once_are_all_different(self) -> None:
        with ExitStack() as stack:
            kept = [stack.enter_context(reserve()) for _ in range(200)]
            self.assertEqual(len({number(each) for each in kept}), 200)
