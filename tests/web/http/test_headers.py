"""Headers and request targets as clients and proxies send them, and as attackers do."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from posd.web.http.headers import RequestTarget, is_host, is_loopback, members, read_target


class ListTests(SynchronousTestCase):
    def test_a_list_may_be_spread_over_lines(self) -> None:
        for lines in (
            ["keep-alive, Upgrade"],
            ["keep-alive", "Upgrade"],
            ["keep-alive,Upgrade,"],
            ["\tUPGRADE ,, Keep-Alive", ""],
        ):
            with self.subTest(lines=lines):
                self.assertEqual(members(lines), {"keep-alive", "upgrade"})

    def test_what_has_no_members_is_empty(self) -> None:
        self.assertEqual(members([]), set())
        self.assertEqual(members(["", " , ,"]), set())

    def test_a_blank_separates_no_members(self) -> None:
        self.assertEqual(members(["keep-alive Upgrade"]), {"keep-alive upgrade"})


class HostTests(SynchronousTestCase):
    def test_names_and_addresses(self) -> None:
        for host in ("posd", "POSD.example:9010", "192.0.2.1:80", "[2001:db8::1]:9010", "a_b", ""):
            self.assertTrue(is_host(host), host)

    def test_what_is_neither(self) -> None:
        for host in ("a b", "a/b", "a@b", "a:b", "[::1", "::1", "a:1:2", "a#b", "a\\b", "ä", "a\t"):
            self.assertFalse(is_host(host), host)

    def test_names_of_this_machine(self) -> None:
        for host in (
            *("localhost", "LocalHost:9011", "localhost:", "127.0.0.1", "127.8.9.10:80"),
            *("127.255.255.255", "[::1]", "[::1]:9011", "[0:0:0:0:0:0:0:1]"),
        ):
            self.assertTrue(is_loopback(host), host)

    def test_names_that_an_attacker_may_lead_here(self) -> None:
        for host in (
            *("localhost.evil.example", "evil.localhost", "localhost.", "localhost.localdomain"),
            *("127.0.0.1.nip.io", "127.0.0.1.", "127.0.0.1.evil.example", "a127.0.0.1"),
            *("2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.01"),
            *("127.0.0.256", "127.999.9.9", "128.0.0.1", "0.0.0.0", "[::]", "[::2]", "::1", "[::1"),
            *("[::ffff:10.0.0.1]", "[fe80::1]", "localhost:80:80", "localhost, evil", "local host"),
            *("127.0.0.1@evil.example", "evil.example#localhost", "", "ⓛocalhost", "１27.0.0.1"),
        ):
            self.assertFalse(is_loopback(host), host)


class TargetTests(SynchronousTestCase):
    def test_origin_form_is_taken_as_it_is(self) -> None:
        for target in (b"/", b"//x", b"/a%2Fb?c=%00", b"/?", b'/"{|}"', b"/..%2f", b"/:80"):
            self.assertEqual(read_target(b"GET", target), RequestTarget(target))

    def test_absolute_form_has_an_authority(self) -> None:
        for target, origin, authority in (
            (b"http://posd/health?a=b", b"/health?a=b", b"posd"),
            (b"HTTPS://posd:9010", b"/", b"posd:9010"),
            (b"http://[::1]:80?a", b"/?a", b"[::1]:80"),
            (b"http://a//b", b"//b", b"a"),
        ):
            self.assertEqual(read_target(b"GET", target), RequestTarget(origin, authority))

    def test_an_asterisk_is_for_options(self) -> None:
        self.assertEqual(read_target(b"OPTIONS", b"*"), RequestTarget(b"*"))
        self.assertIsNone(read_target(b"GET", b"*"))

    def test_what_is_no_target(self) -> None:
        for target in (
            *(b"", b"posd:443", b"health", b"?a", b"/a#b", b"/a\x7f", b"/\x80", b"/a b", b"**"),
            *(b"ftp://posd/", b"http:/posd/", b"http:///x", b"http://a b/", b"http://u@posd/"),
            *(b"http://posd/#a", b"http://posd:x/", b"ws://posd/", b"http:\\\\posd\\"),
        ):
            for method in (b"GET", b"CONNECT"):
                self.assertIsNone(read_target(method, target), target)
