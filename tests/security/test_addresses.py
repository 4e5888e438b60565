"""Tests of client addresses: proxies, the /64 of IPv6, IPv4-mapped addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from posd.security import addresses
from posd.security.addresses import client_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))


class ClientAddressTests(SynchronousTestCase):
    def test_without_proxies_nobody_is_believed(self) -> None:
        self.assertEqual(client_address("10.0.0.1", ["192.0.2.9"], ()), "10.0.0.1")

    def test_a_stranger_is_not_believed(self) -> None:
        self.assertEqual(client_address("192.0.2.1", ["192.0.2.9"], PROXIES), "192.0.2.1")

    def test_the_last_hop_that_is_not_a_proxy_is_the_client(self) -> None:
        for forwarded, client in (
            ([], "10.0.0.1"),
            (["192.0.2.9"], "192.0.2.9"),
            (["198.51.100.1, 192.0.2.9"], "192.0.2.9"),
            (["198.51.100.1", "192.0.2.9"], "192.0.2.9"),
            (["192.0.2.9, 10.0.0.2", "2001:db8:ffff::1"], "192.0.2.9"),
            (["10.0.0.3,10.0.0.2"], "10.0.0.3"),
            (["2001:DB8::9"], "2001:db8::9"),
        ):
            with self.subTest(forwarded=forwarded):
                self.assertEqual(client_address("10.0.0.1", forwarded, PROXIES), client)

    def test_ports_brackets_and_blanks_are_understood(self) -> None:
        for hop, client in (
            (" 192.0.2.9 ", "192.0.2.9"),
            ("192.0.2.9:4711", "192.0.2.9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("[2001:db8::9]:4711", "2001:db8::9"),
            ("::ffff:192.0.2.9", "192.0.2.9"),
            ("192.0.2.9,", "192.0.2.9"),
            ("192.0.2.9, ,", "192.0.2.9"),
        ):
            with self.subTest(hop=hop):
                self.assertEqual(client_address("10.0.0.1", [hop], PROXIES), client)

    def test_a_proxy_with_an_invalid_header_is_the_client(self) -> None:
        for hop in (
            "unknown",
            "_hidden",
            "192.0.2",
            "192.0.2.9:x",
            "[192.0.2.9",
            "a:b:c",
            "٣.1.1.1",
        ):
            with self.subTest(hop=hop):
                told = client_address("10.0.0.1", [f"192.0.2.9, {hop}, 10.0.0.2"], PROXIES)
                self.assertEqual(told, "10.0.0.2")

    def test_a_proxy_is_known_by_ipv4_through_an_ipv6_socket(self) -> None:
        self.assertEqual(client_address("::ffff:10.0.0.1", ["192.0.2.9"], PROXIES), "192.0.2.9")
        self.assertEqual(client_address("::ffff:192.0.2.1", ["192.0.2.9"], PROXIES), "192.0.2.1")

    def test_the_peer_of_a_unix_socket_is_a_proxy_where_there_are_any(self) -> None:
        self.assertEqual(client_address("", ["192.0.2.9"], PROXIES), "192.0.2.9")
        self.assertEqual(client_address("", [], PROXIES), "")
        self.assertEqual(client_address("", ["192.0.2.9"], ()), "")

    def test_as_many_hops_are_looked_at_as_there_may_be_proxies(self) -> None:
        looked: list[str] = []
        parse = addresses._parse

        def note(text: str) -> object:
            looked.append(text)
            return parse(text)

        self.patch(addresses, "_parse", note)
        self.assertEqual(client_address("10.0.0.1", ["10.0.0.2," * 1700], PROXIES), "10.0.0.2")
        self.assertEqual(len(looked), 21)

    _addresses = st.ip_addresses().map(str)
    _hops = _addresses | st.sampled_from(["10.0.0.1", "10.9.9.9"]) | st.text(max_size=20)

    @given(_addresses | st.just(""), st.lists(_hops, max_size=6))
    def test_any_header_gives_the_peer_or_an_address(self, peer: str, forwarded: list[str]) -> None:
        told = client_address(peer, forwarded, PROXIES)
        if told != peer:
            ip_address(told)

    @given(st.lists(_hops, max_size=6), _addresses, st.lists(st.just("10.0.0.2"), max_size=3))
    def test_a_header_of_the_client_does_not_change_its_address(
        self, written: list[str], client: str, ours: list[str]
    ) -> None:
        assume(not any(ip_address(client) in proxy for proxy in PROXIES))
        alone = client_address("10.0.0.1", [", ".join([client, *ours])], PROXIES)
        told = client_address("10.0.0.1", [*written, ", ".join([client, *ours])], PROXIES)
        self.assertEqual(told, alone)
