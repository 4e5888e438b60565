"""Tests of the limit of accepted connections per turn of the reactor."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from posd.daemon import accept_pauses as accepting


@define(eq=False, slots=False)
class Port:
    """A fake port of Twisted with connections in its backlog."""

    backlog: int
    numberAccepts: int = 100
    connected: bool = True
    reading: bool = True
    taken: list[int] = field(factory=list)

    def doRead(self) -> None:
        """Accept connections as Twisted does."""
        accepted = min(self.backlog, self.numberAccepts)
        self.backlog -= accepted
        self.taken.append(accepted)
        self.numberAccepts = accepted + 20 if accepted == self.numberAccepts else max(1, accepted)

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True


class RestsTests(SynchronousTestCase):
    def test_a_few_are_accepted_in_a_turn_however_many_wait(self) -> None:
        port = Port(backlog=10)
        accepting.AcceptPauses(Clock(), port)
        for _ in range(3):
            port.doRead()
        self.assertEqual(port.taken, [2, 2, 2])

    def test_a_port_rests_while_there_is_no_descriptor(self) -> None:
        clock, port = Clock(), Port(backlog=10)
        short = ["Too many open files"]
        self.patch(accepting, "socket_shortage", lambda: short[0] if short else None)
        accepting.AcceptPauses(clock, port)
        port.doRead()
        self.assertFalse(port.reading)
        clock.advance(1)
        self.assertTrue(port.reading)
        short.clear()
        port.doRead()
        self.assertTrue(port.reading)
