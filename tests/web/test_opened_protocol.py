"""Tests that a connection begins in the state in which Autobahn's own handshake ends."""

from __future__ import annotations

from types import NoneType

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.trial.unittest import SynchronousTestCase

from posd.web import opened_protocol as opened
from posd.web.opened_protocol import (
    SET_ELSEWHERE,
    SHARED_OBJECTS,
    OpenedServerProtocol,
    after_handshake,
)


class OpenedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.stock = after_handshake()

    def test_each_object_that_autobahn_sets_is_one_that_posd_knows(self) -> None:
        objects = {
            name
            for name, value in self.stock.items()
            if not isinstance(value, (NoneType, bool, int, float, str, bytes))
        }
        self.assertEqual(objects - SHARED_OBJECTS - SET_ELSEWHERE, set())
        self.assertEqual(opened._COPIED_OBJECTS, {})

    def test_autobahn_still_sets_all_that_posd_sets_in_its_place(self) -> None:
        ours = {"peer", "_transport_details", "is_open", "is_closed", "utf8validator"}
        self.assertEqual((SHARED_OBJECTS | ours) - {*self.stock}, set())
        self.assertEqual(ours - {*vars(OpenedServerProtocol)}, set())

    def test_every_other_attribute_has_the_value_that_autobahn_gives_it(self) -> None:
        protocol = OpenedServerProtocol()
        names = self.stock.keys() - SET_ELSEWHERE - SHARED_OBJECTS
        self.assertGreater(len(names), 30)
        self.assertEqual(
            {name: getattr(protocol, name) for name in names},
            {name: self.stock[name] for name in names},
        )
        self.assertEqual(protocol.state, WebSocketServerProtocol.STATE_OPEN)

    def test_a_connection_has_none_of_them_for_itself(self) -> None:
        self.assertEqual(vars(OpenedServerProtocol()), {})

    def test_an_object_that_posd_does_not_know_is_not_shared(self) -> None:
        self.patch(opened, "_COPIED_OBJECTS", {"chunks": []})
        one, other = OpenedServerProtocol(), OpenedServerProtocol()
        one.chunks.append(b"of one till")
        self.assertEqual(other.chunks, [])
