"""Tests of the queues of input: their order, their share of a turn, and delayed handshakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from attrs import define
from twisted.internet import reactor as global_reactor
from twisted.internet.base import DelayedCall
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.security.handshakes import HandshakeRates
from posd.web.http.input_turns import InputTurns

reactor: Any = global_reactor


@define(eq=False)
class Connection:
    """A connection with `pieces` of input. `spend` is called for each piece."""

    name: str
    went_on: list[str]
    spend: Callable[[], None]
    bucket_key: str = "192.0.2.1"
    owner: object | None = None
    begins_handshake: bool = False
    pieces: int = 1
    aborted: bool = False

    def process_next(self) -> bool:
        self.went_on.append(self.name)
        self.begins_handshake = False
        self.pieces -= 1
        self.spend()
        return self.pieces > 0

    def abortConnection(self) -> None:
        self.aborted = True


def turn(clock: Clock) -> None:
    """Run the due calls of one turn of the reactor. Calls that they schedule run in the next turn."""
    for call in cast("list[DelayedCall]", [*clock.getDelayedCalls()]):
        if call.getTime() <= clock.seconds():
            clock.calls.remove(call)
            call.func(*call.args)


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.now = 0.0
        self.patch(self.clock, "seconds", lambda: self.now)
        self.turns = InputTurns(self.clock, HandshakeRates(self.clock.seconds))
        self.went_on: list[str] = []

    def submit(self, name: str, seconds: float = 0.0005, **how: Any) -> Connection:
        def spend() -> None:
            self.now += seconds

        made = Connection(name, self.went_on, spend, **how)
        self.turns.submit(made)
        return made

    def said(self) -> list[str]:
        """Return the names of the connections that were processed since the last call."""
        said = [*self.went_on]
        self.went_on.clear()
        return said

    def turn(self) -> list[str]:
        """Run a turn of the reactor. Return the names of the connections that were processed."""
        turn(self.clock)
        return self.said()

    def test_input_is_processed_at_once_if_the_queues_are_empty_and_time_is_left(self) -> None:
        for number in range(4):
            self.submit(str(number), owner=1)
        self.assertEqual(self.said(), [*"01"])
        self.assertEqual([self.turn(), self.turn(), self.turn()], [[*"23"], [], []])
        self.submit("4", owner=1)
        self.assertEqual(self.said(), ["4"])
        self.turn()
        self.assertEqual((len(self.turns), self.clock.getDelayedCalls()), (0, []))

    def test_a_slow_piece_uses_up_its_turn(self) -> None:
        for number in range(3):
            self.submit(str(number), 1.0, owner=1)
        self.assertEqual([self.said(), self.turn(), self.turn()], [["0"], ["1"], ["2"]])

    def test_the_pieces_of_a_connection_alternate_with_those_of_others(self) -> None:
        self.submit("long", owner=1, pieces=6)
        self.submit("short", owner=2)
        self.assertEqual(self.said(), ["long"] * 2)
        self.assertEqual(self.turn(), ["long", "short"])
        self.assertEqual(self.turn() + self.turn(), ["long"] * 3)

    def test_owners_alternate_regardless_of_their_number_of_connections(self) -> None:
        for number in range(100):
            self.submit(f"noise {number}", owner="noisy")
        self.submit("quiet", owner="quiet")
        self.said()
        self.assertEqual(self.turn(), ["noise 2", "quiet"])

    def test_connections_without_a_key_come_last_but_one_of_them_in_each_turn(self) -> None:
        for number in range(6):
            self.submit(f"stranger {number}", bucket_key=f"192.0.2.{number}")
        for number in range(3):
            self.submit(f"till {number}", owner=1)
        self.said()
        self.assertEqual(self.turn(), ["till 0", "till 1", "stranger 2"])
        self.assertEqual(self.turn(), ["till 2", "stranger 3"])

    def test_a_connection_that_another_submits_does_not_run_inside_it(self) -> None:
        def wake() -> None:
            self.submit("woken", owner=2)
            self.went_on.append("waker ends")

        self.turns.submit(Connection("waker", self.went_on, wake, owner=1))
        self.assertEqual(self.said(), ["waker", "waker ends"])
        self.assertEqual(self.turn(), ["woken"])

    def test_a_connection_that_fails_is_closed_and_the_others_go_on(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        failing = Connection("failing", self.went_on, fail, owner=1, pieces=9)
        self.turns.submit(failing)
        self.submit("other", owner=2)
        self.assertEqual((self.said(), failing.aborted), (["failing", "other"], True))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_only_an_address_that_begins_too_many_handshakes_is_delayed(self) -> None:
        for number in range(2010):
            self.submit(str(number), 0.0, begins_handshake=True)
        till = self.submit("till", 0.0, bucket_key="192.0.2.2", begins_handshake=True)
        self.said()
        self.turn()
        self.assertEqual((till.pieces, len(self.turns)), (0, 10))
        # What has begun goes on when it is its turn, and who comes meanwhile comes after the others.
        self.submit("second part", 0.0)
        self.submit("last", 0.0, begins_handshake=True)
        self.assertEqual(self.said() + self.turn(), ["second part"])
        self.now += 0.1
        self.turn()
        self.assertEqual(self.turn(), [str(number) for number in range(2000, 2005)])
        for _ in range(6):
            self.turns.refund_handshake("192.0.2.1")
        self.now += 0.02
        self.turn()
        self.assertEqual(self.turn()[-1], "last")
        self.assertEqual(len(self.turns), 0)

    def test_a_delay_of_new_handshakes_does_not_delay_begun_ones(self) -> None:
        self.submit("busy", 1.0, owner=1)
        while not self.turns._handshakes.begin("192.0.2.1"):
            pass
        self.submit("hello", begins_handshake=True)
        self.submit("second part")
        self.said()
        self.assertEqual(self.turn(), ["second part"])
        self.assertEqual((self.turn(), len(self.turns)), ([], 1))

    def test_a_delayed_handshake_is_charged_once(self) -> None:
        self.submit("busy", 1.0, owner=1)
        self.submit("hello", 0.0, begins_handshake=True)
        self.said()
        self.assertEqual(self.turn(), ["hello"])
        charged = 2000
        while not self.turns._handshakes.begin("192.0.2.1"):
            charged -= 1
        self.assertEqual(charged, 1)
