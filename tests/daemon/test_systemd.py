"""Tests of notifications to systemd on a real socket, and of inherited sockets."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from posd.daemon import systemd


class Manager:
    """The notification socket of systemd."""

    def __init__(self, test: SynchronousTestCase, *, abstract: bool = False) -> None:
        # Not in trial's folder, whose path is too long for the address of a socket.
        folder = tempfile.TemporaryDirectory()
        test.addCleanup(folder.cleanup)
        path = f"{folder.name}/notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        test.addCleanup(self._socket.close)
        self._socket.bind(f"\0{path}" if abstract else path)
        self._socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": f"@{path}" if abstract else path}

    def told(self) -> list[str]:
        """Return the datagrams since the last call."""
        datagrams = []
        with contextlib.suppress(BlockingIOError):
            while True:
                datagrams.append(self._socket.recv(65536).decode())
        return datagrams


class WithSystemd(SynchronousTestCase):
    """systemd has started the daemon with a notification socket."""

    def setUp(self) -> None:
        self.manager = Manager(self)
        self.notifier = systemd.Notifier(self.manager.environ)

    def test_each_state_is_the_assignment_that_sd_notify_documents(self) -> None:
        self.notifier.ready()
        self.notifier.status("7 terminals")
        self.notifier.reloading(1234567)
        self.notifier.extend_timeout(30_000_000)
        self.notifier.watchdog()
        self.notifier.stopping()
        self.assertEqual(
            self.manager.told(),
            [
                "READY=1",
                "STATUS=7 terminals",
                "RELOADING=1\nMONOTONIC_USEC=1234567",
                "EXTEND_TIMEOUT_USEC=30000000",
                "WATCHDOG=1",
                "STOPPING=1",
            ],
        )
        self.assertTrue(self.notifier.enabled)

    def test_an_abstract_address_is_reached(self) -> None:
        manager = Manager(self, abstract=True)
        systemd.Notifier(manager.environ).ready()
        self.assertEqual(manager.told(), ["READY=1"])

    @given(st.text())
    def test_no_status_can_smuggle_in_another_assignment(self, text: str) -> None:
        self.notifier.status(text)
        (datagram,) = self.manager.told()
        self.assertEqual(len(datagram.splitlines()), 1)
        self.assertTrue(datagram.startswith("STATUS="))

    def test_systemd_is_notified_when_no_descriptor_is_left(self) -> None:
        def none_left(*_: object) -> None:
            raise OSError(24, "Too many open files")

        self.patch(socket, "socket", none_left)
        self.notifier.watchdog()
        self.assertEqual(self.manager.told(), ["WATCHDOG=1"])

    def test_a_notification_that_is_not_read_is_dropped_with_a_warning(self) -> None:
        self.patch(systemd, "_SEND_TIMEOUT", 0.001)
        with capturedLogs() as logs:
            for _ in range(5000):
                self.notifier.watchdog()
                if logs:
                    break
        self.assertEqual([event["log_level"] for event in logs], [LogLevel.warn])
        self.assertTrue(self.manager.told())


class WithoutSystemd(SynchronousTestCase):
    def test_nobody_is_told_where_nobody_listens(self) -> None:
        for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
            notifier = systemd.Notifier(environ)
            with capturedLogs() as logs:
                notifier.ready()
            self.assertFalse(notifier.enabled)
            self.assertEqual(logs, [])

    def test_a_missing_socket_is_logged_as_a_warning(self) -> None:
        notifier = systemd.Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"})
        with capturedLogs() as logs:
            notifier.ready()
        self.assertEqual([event["log_level"] for event in logs], [LogLevel.warn])


class WatchdogInterval(SynchronousTestCase):
    def test_microseconds_become_seconds(self) -> None:
        self.assertEqual(systemd.watchdog_interval({"WATCHDOG_USEC": "30000000"}), 30.0)

    def test_the_watchdog_is_for_the_process_of_its_pid(self) -> None:
        own = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}
        self.assertEqual(systemd.watchdog_interval(own), 0.5)
        other = {"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getppid())}
        self.assertIsNone(systemd.watchdog_interval(other))

    def test_there_is_no_watchdog_if_the_variable_is_absent_zero_or_not_a_number(self) -> None:
        for environ in ({}, *({"WATCHDOG_USEC": usec} for usec in ("", "0", "-5", "soon", "²"))):
            self.assertIsNone(systemd.watchdog_interval(environ))


class TheJournal(SynchronousTestCase):
    def setUp(self) -> None:
        path = Path(self.mktemp())
        self.stream = path.open("w")
        self.addCleanup(self.stream.close)
        there = path.stat()
        self.named = f"{there.st_dev}:{there.st_ino}"

    def test_a_stream_is_the_journal_if_journal_stream_names_it(self) -> None:
        self.assertTrue(systemd.is_journal({"JOURNAL_STREAM": self.named}, self.stream))

    def test_another_stream_is_not_the_journal(self) -> None:
        self.assertFalse(systemd.is_journal({"JOURNAL_STREAM": "8:1"}, self.stream))
        self.assertFalse(systemd.is_journal({}, self.stream))
        self.assertFalse(systemd.is_journal({"JOURNAL_STREAM": self.named}, io.StringIO()))


class TheWatchdog(SynchronousTestCase):
    """The watchdog interval is thirty seconds."""

    def setUp(self) -> None:
        self.manager = Manager(self)
        self.clock = Clock()
        notifier = systemd.Notifier(self.manager.environ)
        self.watchdog = systemd.Watchdog(self.clock, notifier, 30.0)

    def test_the_watchdog_is_notified_at_once_and_then_twice_per_interval(self) -> None:
        self.watchdog.startService()
        self.assertEqual(self.manager.told(), ["WATCHDOG=1"])
        self.clock.pump([14.9])
        self.assertEqual(self.manager.told(), [])
        self.clock.pump([0.2, 15.0])
        self.assertEqual(self.manager.told(), ["WATCHDOG=1", "WATCHDOG=1"])

    def test_the_watchdog_is_not_notified_while_the_daemon_is_not_alive(self) -> None:
        alive = True
        watchdog = systemd.Watchdog(
            self.clock, systemd.Notifier(self.manager.environ), 30.0, lambda: alive
        )
        watchdog.startService()
        self.manager.told()
        alive = False
        self.clock.pump([15.0, 15.0])
        self.assertEqual(self.manager.told(), [])
        alive = True
        self.clock.pump([15.0])
        self.assertEqual(self.manager.told(), ["WATCHDOG=1"])
        watchdog.stopService()

    def test_the_watchdog_is_not_notified_before_the_start_or_after_the_stop(self) -> None:
        self.clock.advance(60)
        self.assertEqual(self.manager.told(), [])
        self.watchdog.startService()
        self.watchdog.stopService()
        self.manager.told()
        self.clock.advance(60)
        self.assertEqual(self.manager.told(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_watchdog_that_was_not_started_can_be_stopped(self) -> None:
        self.watchdog.stopService()
        self.assertFalse(self.watchdog.running)


class InheritedNames(SynchronousTestCase):
    def test_they_come_in_the_order_of_their_descriptors(self) -> None:
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:a"}
        self.assertEqual(systemd.inherited_names(environ), ("a", "b", "a"))

    def test_another_processes_names_are_not_ours(self) -> None:
        environ = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDNAMES": "https"}
        self.assertEqual(systemd.inherited_names(environ), ())

    def test_without_systemd_there_are_none(self) -> None:
        self.assertEqual(systemd.inherited_names({}), ())


_DAEMON = """
import os, sys
descriptors = [int(each) for each in sys.argv[2:]]
for place, descriptor in enumerate([os.dup2(each, each + 100) for each in descriptors]):
    os.dup2(descriptor, 3 + place)
os.environ["LISTEN_FDS"] = str(len(descriptors))
os.environ["LISTEN_FDNAMES"] = sys.argv[1]
os.environ["LISTEN_PID"] = str(os.getpid())

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from posd import errors
from posd.daemon.systemd import inherited_endpoints

waiting = len(descriptors)

class Answer(Protocol):
    def connectionMade(self):
        self.transport.write(self.factory.answer.encode())
        self.transport.loseConnection()

    def connectionLost(self, reason):
        global waiting
        waiting -= 1
        if not waiting:
            reactor.stop()

try:
    inherited = inherited_endpoints(reactor, os.environ)
except errors.StartError as error:
    sys.exit(str(error))
for name, endpoints in inherited.items():
    for endpoint in endpoints:
        factory = Factory.forProtocol(Answer)
        factory.answer = f"{name} {endpoint.addressFamily.name}"
        endpoint.listen(factory)
reactor.run()
"""
"""A daemon that takes over its sockets, answers one connection on each with its name, and ends."""


def started_with(names: str, *sockets: socket.socket) -> subprocess.CompletedProcess[str]:
    """Run the daemon with these sockets, passed as systemd does, until it exits."""
    descriptors = [each.fileno() for each in sockets]
    return subprocess.run(
        [sys.executable, "-c", _DAEMON, names, *map(str, descriptors)],
        cwd=Path(systemd.__file__).parents[2],
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class InheritedEndpoints(SynchronousTestCase):
    """A child process gets listening sockets, which cannot be faked in this process."""

    def listening(self, family: int, address: tuple[str, int] | str) -> socket.socket:
        opened = socket.socket(family, socket.SOCK_STREAM)
        self.addCleanup(opened.close)
        opened.bind(address)
        opened.listen()
        return opened

    def call(self, opened: socket.socket) -> socket.socket:
        caller = socket.socket(opened.family, socket.SOCK_STREAM)
        self.addCleanup(caller.close)
        caller.settimeout(60)
        caller.connect(opened.getsockname())
        return caller

    def test_each_is_adopted_with_its_own_family_and_none_is_left_deaf(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        sockets = [
            self.listening(socket.AF_INET, ("127.0.0.1", 0)),
            self.listening(socket.AF_UNIX, f"{folder.name}/local.sock"),
            self.listening(socket.AF_INET, ("127.0.0.1", 0)),
        ]
        expected = ["https AF_INET", "local AF_UNIX", "https AF_INET"]
        with contextlib.suppress(OSError):  # A container may have no IPv6.
            sockets.append(self.listening(socket.AF_INET6, ("::1", 0)))
            expected.append("https AF_INET6")
        names = ":".join(each.split()[0] for each in expected)
        callers = [self.call(opened) for opened in sockets]
        ended = started_with(names, *sockets)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        self.assertEqual([caller.recv(100).decode() for caller in callers], expected)

    def test_a_socket_that_does_not_listen_is_refused_by_name(self) -> None:
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(datagrams.close)
        unbound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.addCleanup(unbound.close)
        for wrong in (datagrams, unbound):
            ended = started_with("https", wrong)
            self.assertEqual(ended.returncode, 1)
            self.assertIn("The inherited socket 'https' does not accept connections", ended.stderr)

    def test_names_left_behind_by_a_parent_are_not_believed(self) -> None:
        inherited = systemd.inherited_endpoints(None, {"LISTEN_FDNAMES": "https"})  # type: ignore[arg-type]
        self.assertEqual(inherited, {})
