"""A connection begins as Autobahn leaves one after its own handshake, whatever version of it is installed."""

from __future__ import annotations

from types import NoneType

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.trial.unittest import SynchronousTestCase

from posd.web import opened
from posd.web.opened import OTHERS, SHARED, Opened, after_handshake


class OpenedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stock = after_handshake()

    def test_each_object_that_autobahn_sets_is_one_that_posd_knows(self) -> None:
        objects = {
            name
            for name, value in self.stock.items()
            if not isinstance(value, (NoneType, bool, int, float, str, bytes))
        }
        self.assertEqual(objects - SHARED - OTHERS, set())
        self.assertEqual(opened._COPIED, {})

    def test_autobahn_still_sets_all_that_posd_sets_in_its_place(self) -> None:
        ours = {"peer", "_transport_details", "is_open", "is_closed", "utf8validator"}
        self.assertEqual((SHARED | ours) - {*self.stock}, set())
        self.assertEqual(ours - {*vars(Opened)}, set())

    def test_every_other_attribute_has_the_value_that_autobahn_gives_it(self) -> None:
        protocol = Opened()
        names = self.stock.keys() - OTHERS - SHARED
        self.assertGreater(len(names), 30)
        self.assertEqual(
            {name: getattr(protocol, name) for name in names},
            {name: self.stock[name] for name in names},
        )
        self.assertEqual(protocol.state, WebSocketServerProtocol.STATE_OPEN)

    def test_a_connection_has_none_of_them_for_itself(self) -> None:
        self.assertEqual(vars(Opened()), {})

    def test_an_object_that_posd_does_not_know_is_not_shared(self) -> None:
        self.patch(opened, "_COPIED", {"chunks": []})
        one, other = Opened(), Opened()
        one.chunks.append(b"of one till")
        self.assertEqual(other.chunks, [])
