"""Tests that endpoint descriptions are parsed as by Twisted, and of their problems."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from posd.config.endpoints import (
    OtherListener,
    SystemdListener,
    TCP6Listener,
    TCPListener,
    UnixListener,
    collide,
    is_local,
    is_world_writable,
    read,
    with_backlog,
)

_ports = st.integers(0, 65535)
_backlogs = st.integers(1, 4096)
_interfaces = st.one_of(st.just(""), st.ip_addresses().map(str))
_paths = st.text(st.sampled_from("abc:=\\ é."), min_size=1).map(lambda text: "/" + text)


class ReadTests(SynchronousTestCase):
    def test_arguments_may_be_named_or_in_order(self) -> None:
        for description, endpoint in (
            ("tcp:9010", TCPListener(9010)),
            ("tcp:port=9010:interface=127.0.0.1", TCPListener(9010, "127.0.0.1")),
            ("tcp:9010:127.0.0.1:backlog=9", TCPListener(9010, "127.0.0.1", 9)),
            ("tcp:interface=127.0.0.1:port=0", TCPListener(0, "127.0.0.1")),
            (r"tcp:port=9010:interface=\:\:", TCPListener(9010, "::")),
            (r"tcp:9010:interface=fe80\:\:1%eth0", TCPListener(9010, "fe80::1%eth0")),
            ("tcp6:9010", TCP6Listener(9010, interface="::")),
            ("unix:/run/posd/local.sock:mode=660", UnixListener("/run/posd/local.sock", 0o660)),
            ("unix:address=/a=b:lockfile=0", UnixListener("/a=b", lockfile=False)),
            ("systemd:domain=INET6:name=https", SystemdListener("INET6", name="https")),
            ("systemd:UNIX:index=0", SystemdListener("UNIX", index=0)),
            (r"haproxy:tcp:9010:interface=\:\:", OtherListener("haproxy", TCPListener(9010, "::"))),
            ("onion:80:controlPort=9051", OtherListener("onion")),
        ):
            with self.subTest(description=description):
                self.assertEqual(read(description), endpoint)

    def test_each_mistake_has_its_own_message(self) -> None:
        for description, reason in (
            ("", "begin with a kind"),
            ("9010", "begin with a kind"),
            ("0.0.0.0:9010", "begin with a kind"),
            (":9010", "begin with a kind"),
            ("tcp", "begin with a kind"),
            ("till-3", "begin with a kind"),
            ("tcp:interface=127.0.0.1", '"port" is missing'),
            ("tcp:port=9010:interface=::", "a colon in a value needs a backslash"),
            ("tcp://0.0.0.0:9010", '"//0.0.0.0" is not a whole number'),
            ("tcp:https", '"https" is not a whole number'),
            ("tcp:70000", "70000 is not a port; the last one is 65535"),
            ("tcp:prt=9010", 'there is no argument "prt"; the kind takes port, interface, backlog'),
            ("tcp:9010:127.0.0.1:50:x", '"x" is one argument too many'),
            ("tcp:9010:port=9011", '"port" is given twice'),
            ("tcp:9010:interface=till.example", "not the IP address of an interface"),
            ("tcp:9010\\", "ends in a backslash"),
            ("tpc:9010", 'did you mean "tcp:"?'),
            ("ssl:9010", 'write "tcp:…" and tls = true'),
            ("https:9010", 'write "tcp:…" and tls = true'),
            ("unix:run/local.sock", "not an absolute path"),
            ("unix:/run/local.sock:mode=rw", "not a file mode in octal"),
            ("unix:/run/local.sock:lockfile=no", "neither 0 nor 1"),
            ("systemd:INET", "either a name or an index"),
            ("systemd:INET:0:https", "either a name or an index"),
            ("systemd:INET7:name=https", "is not INET, INET6 or UNIX"),
            ("haproxy:tcp:", "an argument is empty"),
            ("haproxy", "begin with a kind"),
        ):
            with self.subTest(description=description):
                error = self.assertRaises(ValueError, read, description)
                self.assertIn(reason, str(error))

    @given(st.text(st.sampled_from("tcp:unix/=\\169.é\0") | st.characters()))
    def test_nothing_but_a_value_error_comes_out(self, description: str) -> None:
        try:
            read(description)
        except ValueError as error:
            self.assertTrue(str(error))


class AgreementTests(SynchronousTestCase):
    """Twisted listens on the same socket for every accepted description."""

    @given(_ports, _interfaces, _backlogs)
    def test_on_a_tcp_port(self, port: int, interface: str, backlog: int) -> None:
        quoted = quoteStringArgument(interface)
        description = f"tcp:{port}:backlog={backlog}:interface={quoted}"
        reactor = MemoryReactorClock()
        serverFromString(reactor, description).listen(Factory())
        [(listening, _, length, bound)] = reactor.tcpServers
        self.assertEqual(read(description), TCPListener(listening, bound, length))

    @given(_paths, st.integers(0, 0o777), st.booleans())
    def test_on_a_unix_socket(self, path: str, mode: int, lockfile: bool) -> None:
        quoted = quoteStringArgument(path).replace("=", r"\=")
        description = f"unix:{quoted}:mode={mode:03o}:lockfile={lockfile:d}"
        reactor = MemoryReactorClock()
        serverFromString(reactor, description).listen(Factory())
        [(address, _, length, bits, locked)] = reactor.unixServers
        self.assertEqual(read(description), UnixListener(address, bits, length, locked))


class ReachTests(SynchronousTestCase):
    def test_unix_sockets_and_loopback_are_local(self) -> None:
        for description in (
            "unix:/run/posd/local.sock",
            "systemd:UNIX:name=local",
            "tcp:9011:interface=127.0.0.1",
            "tcp:9011:interface=127.8.0.1",
            "tcp:9011:interface=localhost",
            r"tcp:9011:interface=\:\:1",
            r"tcp6:9011:interface=\:\:1",
        ):
            with self.subTest(description=description):
                self.assertTrue(is_local(read(description)))

    def test_all_else_may_be_reached_from_elsewhere(self) -> None:
        for description in (
            "tcp:9011",
            "tcp6:9011",
            "tcp:9011:interface=0.0.0.0",
            "tcp:9011:interface=192.168.0.2",
            r"tcp:9011:interface=\:\:",
            "systemd:INET:name=local",
            "haproxy:unix:/run/posd/local.sock",
            "onion:80",
        ):
            with self.subTest(description=description):
                self.assertFalse(is_local(read(description)))

    def test_a_unix_socket_is_open_to_everybody_unless_its_mode_says_otherwise(self) -> None:
        modes = ("", ":mode=666", ":mode=661", ":mode=660", ":mode=600")
        openness = [is_world_writable(read(f"unix:/run/local.sock{mode}")) for mode in modes]
        self.assertEqual(openness, [True, True, True, False, False])
        self.assertFalse(is_world_writable(read("tcp:9011")))


class CollisionTests(SynchronousTestCase):
    """Two listeners on the same socket."""

    def test_different_descriptions_of_one_socket_collide(self) -> None:
        for first, second in (
            ("tcp:9010", "tcp:port=9010"),
            ("tcp:9010", "tcp:9010:interface=127.0.0.1"),
            ("tcp:9010:interface=localhost", "tcp:9010:interface=127.0.0.1"),
            (r"tcp:9010:interface=\:\:", "tcp:9010"),
            (r"tcp:9010:interface=\:\:", "tcp:9010:interface=192.0.2.1"),
            ("tcp6:9010", r"tcp:9010:interface=\:\:1"),
            ("haproxy:tcp:9010", "tcp:9010"),
            ("unix:/run/s", "unix:/run/s:mode=660"),
            ("systemd:domain=INET:name=a", "systemd:domain=INET:name=a"),
        ):
            self.assertTrue(collide(first, second), (first, second))
            self.assertTrue(collide(second, first), (second, first))

    def test_two_places_are_two(self) -> None:
        for first, second in (
            ("tcp:9010", "tcp:9011"),
            ("tcp:0", "tcp:0"),
            ("tcp:9010:interface=127.0.0.1", "tcp:9010:interface=127.0.0.2"),
            ("tcp:9010", r"tcp:9010:interface=\:\:1"),
            ("unix:/run/s", "unix:/run/t"),
            ("unix:/run/s", "tcp:9010"),
            ("systemd:domain=INET:name=a", "systemd:domain=INET:name=b"),
        ):
            self.assertFalse(collide(first, second), (first, second))
            self.assertFalse(collide(second, first), (second, first))


class BacklogTests(SynchronousTestCase):
    def test_a_listener_without_a_backlog_gets_one(self) -> None:
        for description in ("tcp:9010", "tcp6:port=9010", "unix:/run/posd.sock:mode=660"):
            longer = with_backlog(description, 99)
            self.assertEqual(longer, f"{description}:backlog=99")
            self.assertIn("backlog=99", repr(read(longer)))

    def test_other_descriptions_stay_unchanged(self) -> None:
        for description in (
            "tcp:9010:backlog=7",
            "tcp:9010:127.0.0.1:7",
            "unix:/run/posd.sock:660:7",
            "systemd:domain=INET6:name=https",
            "haproxy:tcp:9010",
            "plugin:what=ever",
            "no such thing",
        ):
            self.assertEqual(with_backlog(description, 99), description)
