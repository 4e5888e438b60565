"""Hostile requests: ambiguous, endless, oversized, and disguised."""

from __future__ import annotations

import itertools
from typing import Final

from tests.integration.hostile_case import HostileCase
from tests.integration.peer import PING, Answer, HungUp, Peer, frame, handshake, request
from tests.integration.wire_case import until

_MIB: Final = 1024 * 1024
_GET: Final = b"GET /health/live HTTP/1.1\r\nHost: posd\r\n"
_NOTE: Final = b'{"type":"note","data":{}}'


class SmugglingTests(HostileCase):
    """posd refuses what a proxy and posd could parse as two different requests."""

    def setUp(self) -> None:
        super().setUp()
        self.platform = self.make_key("platform")

    def post(self, *headers: bytes, body: bytes = b"") -> bytes:
        """Return a publication with a valid key and these header lines."""
        first = b"POST /api/%b/events HTTP/1.1\r\n" % self.slug.encode()
        lines = b"".join(line + b"\r\n" for line in (b"Host: posd", *headers))
        key = b"X-API-Key: %b\r\n" % self.platform.encode()
        return first + lines + key + b"\r\n" + body

    def head(self) -> int:
        """Return the number of events of the tenant."""
        ((count,),) = self.shop.query(f"SELECT count(*) FROM {self.schema}.pos_sync_logs")
        return int(count)

    def assert_ended(self, raw: bytes, *later: bytes) -> None:
        """Assert that the only answer is 400, the connection ends, and nothing was published."""
        with self.peer() as peer:
            peer.send(raw)
            answer = peer.answer()
            for more in later:
                peer.send(more)
            with self.assertRaises(HungUp) as caught:
                peer.answer()
        self.assertEqual(caught.exception.rest, b"")
        self.assert_refused(answer, 400, "bad_request")
        self.assert_quiet(answer)

    def test_bodies_of_two_lengths(self) -> None:
        smuggled = self.post(b"Content-Length: 25", body=_NOTE)
        chunked = b"0\r\n\r\n"
        for headers, body in (
            ((b"Content-Length: 25", b"Content-Length: 0"), _NOTE),
            ((b"Content-Length: 25", b"Content-Length: 25"), _NOTE),
            ((b"Content-Length: 25, 0",), _NOTE),
            ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), chunked),
            ((b"Transfer-Encoding: chunked", b"Content-Length: 5"), chunked),
            ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), chunked),
            ((b"Transfer-Encoding: chunked, identity",), chunked),
            ((b"Transfer-Encoding: xchunked",), chunked),
            ((b"Transfer-Encoding: identity",), _NOTE),
            ((b"Transfer-Encoding: gzip",), _NOTE),
            ((b"Content-Length: +25",), _NOTE),
            ((b"Content-Length: -25",), _NOTE),
            ((b"Content-Length: 0x19",), _NOTE),
            ((b"Content-Length: 2 5",), _NOTE),
            ((b"Content-Length:",), _NOTE),
            ((b"Content-Length: 25\x00",), _NOTE),
            ((b"Content-Length : 25",), _NOTE),
            ((b"Content-Length: 25", b" Content-Length: 0"), _NOTE),
            ((b"Content-Length: " + b"9" * 5000,), _NOTE),
            ((b"Content-Length: 25;a=b",), _NOTE),
            ((b"Transfer-Encoding : chunked", b"Content-Length: 5"), chunked),
            ((b"Transfer-Encoding: \x0bchunked", b"Content-Length: 5"), chunked),
            ((b"Transfer-Encoding: chunked, chunked",), chunked),
            ((b"X: a", b"\tTransfer-Encoding: chunked", b"Content-Length: 5"), chunked),
        ):
            with self.subTest(headers=headers):
                self.assert_ended(self.post(*headers), body, smuggled)
        self.assertEqual(self.head(), 0)

    def test_two_hosts(self) -> None:
        for other in (b"example.org", b"posd", b""):
            self.assert_ended(self.post(b"Host: " + other, b"Content-Length: 25", body=_NOTE))
        self.assertEqual(self.head(), 0)

    def test_chunks_that_are_none(self) -> None:
        for chunk in (
            b"-1\r\n",
            b"0x5\r\n",
            b"g\r\n",
            b"5 \r\n",
            b" 5\r\n",
            b"5_0\r\n",
            b"5\nhello\r\n",
            b"5;a=\x01\r\n",
            b"5\r\nhelloX0\r\n",
            b"\r\n",
            b"5;" + b"x" * 5000,
            b"0" * 5000,
            b"0\r\n" + b"X: y\r\n" * 20_000,
        ):
            with self.subTest(chunk=chunk[:10]):
                self.assert_ended(
                    self.post(b"Transfer-Encoding: chunked", body=chunk), b"hello\r\n0\r\n\r\n"
                )
        self.assertEqual(self.head(), 0)

    def test_lines_that_are_none(self) -> None:
        for raw in (
            b"GET /health/live\r\n\r\n",
            b"GET  /health/live HTTP/1.1\r\n\r\n",
            b"GET /health/live HTTP/2.0\r\n\r\n",
            b"GET /health/live HTTP/1.1 \r\n\r\n",
            b"G\x00T /health/live HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\nHost posd\r\n\r\n",
            _GET + b"X-One: 1\nX-Two: 2\r\n\r\n",
            _GET + b"X-One: 1\rX-Two: 2\r\n\r\n",
            _GET + b"X(One): 1\r\n\r\n",
            _GET + b"X-One: 1\x00\r\n\r\n",
            _GET + b"X-One: 1\x0b\r\n\r\n",
            _GET + b"X-One: 1\r\n X-Two: 2\r\n\r\n",
            _GET + b"X-One:\r\n\t2\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\n Host: posd\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\nX-One: 1\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\nHost: po sd\r\n\r\n",
            b"GET health/live HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET /health/live#top HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET /health/live\x7f HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET /health/l\xc3\xafve HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET http:///health/live HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"GET http://u:p@posd/health/live HTTP/1.1\r\nHost: posd\r\n\r\n",
            b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        ):
            with self.subTest(raw=raw):
                self.assert_ended(raw, b"\r\n\r\n")

    def test_lines_that_end_without_a_carriage_return_are_no_request(self) -> None:
        with self.peer() as peer:
            peer.send(b"GET /health/live HTTP/1.1\nHost: posd\n\n")
            peer.send(b" HTTP/1.1\r\n\r\n")
            self.assert_refused(peer.answer(), 400, "bad_request")

    def test_a_till_without_a_host_is_refused_like_everybody(self) -> None:
        lines = [*handshake(), ("X-API-Key", self.key)]
        raw = request("GET", f"/ws/pos/{self.slug}", lines)
        self.assert_ended(raw.replace(b"Host: localhost\r\n", b""))

    def test_what_comes_behind_the_chunks_is_no_header(self) -> None:
        """Trailers are read and discarded (RFC 9110 §6.5.1)."""
        body = b"19\r\n" + _NOTE + b"\r\n0\r\nX-Tenant-ID: other\r\nHost: other\r\n\r\n"
        with self.peer() as peer:
            peer.send(self.post(b"Transfer-Encoding: chunked", body=body))
            self.assertEqual(peer.answer().status, 201)

    def test_a_request_behind_another_is_not_taken(self) -> None:
        publication = self.post(b"Content-Length: 25", body=_NOTE)
        with self.peer() as peer:
            peer.send(publication * 3)
            self.assertEqual(peer.answer().status, 201)
            self.assertEqual(peer.rest(), b"")
        self.assertEqual(self.head(), 1)

    def test_a_request_behind_an_upgrade_is_never_http(self) -> None:
        upgrade = request("GET", f"/ws/pos/{self.slug}", [*handshake(), ("X-API-Key", self.key)])
        for body in ([], [("Content-Length", "300")], [("Transfer-Encoding", "chunked")]):
            with self.subTest(body=body), self.peer() as peer:
                lines = "".join(f"{name}: {value}\r\n" for name, value in body).encode()
                peer.send(upgrade[:-2] + lines + b"\r\n")
                peer.send(self.post(b"Content-Length: 25", body=_NOTE) * 2)
                # If early data is dropped, the connection stays open and answers.
                peer.head()
                peer.send(frame(PING, b"still there?"))
                self.assertNotIn(b"HTTP/1.1 2", peer.said_until(b"still there?"))
        self.assertEqual(self.head(), 0)


class DisguiseTests(HostileCase):
    """Unusual methods, versions and addresses."""

    def test_methods_that_an_address_does_not_know(self) -> None:
        for method in ("OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "PROPFIND", "get", "CONNECT"):
            for path, allowed in (("/health/live", "GET, HEAD"), ("/broadcast", "POST")):
                with self.subTest(method=method, path=path):
                    answer = self.ask(method, path, key=self.key, headers={"X-Secret": self.secret})
                    self.assert_refused(answer, 405, "method_not_allowed")
                    self.assertEqual(answer.headers["allow"], allowed)

    def test_a_till_connects_by_get_alone(self) -> None:
        for method, raw in itertools.product(
            ("POST", "HEAD", "OPTIONS", "TRACE"), (b"HTTP/1.1", b"HTTP/1.0")
        ):
            with self.subTest(method=method), self.peer() as peer:
                headers = [*handshake(), ("X-API-Key", self.key)]
                asked = request(method, f"/ws/pos/{self.slug}", headers)
                peer.send(asked.replace(b"HTTP/1.1", raw))
                self.assertIn(b"426 Upgrade Required", peer.head())

    def test_an_upgrade_is_none_in_http_1_0(self) -> None:
        headers = [*handshake(), ("X-API-Key", self.key)]
        with self.peer() as peer:
            asked = request("GET", f"/ws/pos/{self.slug}", headers)
            peer.send(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))
            self.assert_refused(peer.answer(), 426, "upgrade_required")

    def test_head_has_no_body(self) -> None:
        with self.peer() as peer:
            peer.send(b"HEAD /health/live HTTP/1.1\r\nHost: posd\r\nConnection: close\r\n\r\n")
            head, _, body = peer.rest().partition(b"\r\n\r\n")
        self.assertIn(b"HTTP/1.1 200 OK", head)
        self.assertEqual(body, b"")

    def test_http_1_0_is_answered_once(self) -> None:
        with self.peer() as peer:
            peer.send(b"GET /health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            self.assertTrue(peer.rest().startswith(b"HTTP/1.0 200 OK"))

    def test_posd_is_nobodys_proxy(self) -> None:
        for target in (
            "https://example.org/",
            "http://example.org//health/live",
            "//health/live",
            "/../health/live",
            "/..%2fhealth/live",
            "/health/live%00",
            "/health/%c0%aelive",
            "/health/../health/live",
            "/%68ealth%2Flive",
            "/health\\live",
        ):
            with self.subTest(target=target):
                self.assertEqual(self.ask("GET", target, key=self.key).status, 404)

    def test_a_target_in_absolute_form_is_for_posd(self) -> None:
        """RFC 9112 §3.2.2: a server accepts it, whatever host it names."""
        for target in ("http://localhost/health/live", "HTTPS://example.org:444/health/live"):
            self.assertEqual(self.ask("GET", target).status, 200)

    def test_an_asterisk_is_for_options_and_leads_nowhere(self) -> None:
        answer = self.ask("OPTIONS", "*")
        self.assertEqual(answer.status, 404)
        self.assertNotIn("twisted", answer.headers["server"].lower())

    def test_a_client_that_offers_http_2_is_answered_in_http_1_1(self) -> None:
        """Like Java's HttpClient and `curl --http2` without TLS."""
        offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AA"}
        self.assertEqual(self.ask("GET", "/health/live", headers=offer).status, 200)

    def test_headers_that_webserver_and_library_read_differently(self) -> None:
        """The handshake is judged once. Other headers have no effect."""
        for number, (name, value) in enumerate(
            (
                ("Origin", "http://[::1"),
                ("Origin", "null"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Protocol", "a, a"),
                ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits=99"),
                ("Sec-WebSocket-Extensions", "permessage-deflate"),
                ("Upgrade", "h2c"),
                ("Connection", "keep-alive"),
                ("Cookie", f"a={self.secret}"),
                ("X-Forwarded-For", "not an address"),
            )
        ):
            with self.subTest(name=name, value=value):
                key = self.make_key("device", f"till-{number}")
                answer = self.try_handshake(key, headers=[(name, value)])
                self.assertEqual(answer.status, 101)
                self.assertNotIn("sec-websocket-extensions", answer.headers)

    def test_handshakes_that_are_none(self) -> None:
        good = dict(handshake())
        for name, value, status in (
            ("Upgrade", "h2c", 426),
            ("Connection", "keep-alive", 426),
            ("Sec-WebSocket-Version", "8", 426),
            ("Sec-WebSocket-Version", "13, 8", 426),
            ("Sec-WebSocket-Key", "short", 400),
            ("Sec-WebSocket-Key", "\xff" * 24, 400),
            ("Sec-WebSocket-Key", "A" * 24, 400),
            ("Sec-WebSocket-Key", "", 400),
        ):
            with self.subTest(name=name, value=value), self.peer() as peer:
                headers = {**good, name: value, "X-API-Key": self.key}
                answer = peer.ask("GET", f"/ws/pos/{self.slug}", headers)
                self.assertEqual(answer.status, status, answer)
                self.assertIs(answer.json["success"], False)

    def test_a_fragment_or_a_query_string_is_told_nobody(self) -> None:
        for path in (f"?a={self.secret}", f"?a=b#{self.secret}", f"?{self.secret}#{self.secret}"):
            self.try_handshake(self.key, path=f"/ws/pos/{self.slug}{path}")
            self.try_handshake("wrong", path=f"/ws/pos/{self.slug}{path}")
            self.ask("POST", f"/api/{self.slug}/events{path}", {"type": 5}, key=self.key)

    def test_bytes_that_are_no_utf_8_make_no_fault(self) -> None:
        platform, odd = self.make_key("platform"), "\xff\xfe\x80"
        path = f"/api/{self.slug}/events"
        for name, status in (
            ("X-Tenant-ID", 403),
            ("Idempotency-Key", 400),
            ("Content-Type", 415),
            ("X-Forwarded-For", 201),
            ("User-Agent", 201),
        ):
            with self.subTest(name=name):
                answer = self.ask("POST", path, _NOTE, key=platform, headers=[(name, odd)])
                self.assertEqual(answer.status, status, answer)


class SizeTests(HostileCase):
    """Too large requests are refused before they have arrived, and use no memory."""

    def assert_refused_and_gone(self, peer: Peer, status: int, code: str) -> None:
        answer: Answer = peer.answer()
        self.assert_refused(answer, status, code)
        self.assertEqual(answer.headers["connection"], "close")
        peer.rest(1.0)

    def test_a_large_body_with_its_length(self) -> None:
        before = self.memory()
        for path in ("/broadcast", f"/api/{self.slug}/events", "/health/live", "/nowhere"):
            with self.subTest(path=path), self.peer() as peer:
                head = f"POST {path} HTTP/1.1\r\nHost: posd\r\nContent-Length: {10 * _MIB}\r\n\r\n"
                peer.send(head.encode())
                self.assert_refused_and_gone(peer, 413, "too_large")
        self.assertLess(self.memory() - before, 8)

    def test_a_large_body_in_chunks(self) -> None:
        before = self.memory()
        for size in (0x10000, 7):
            with self.subTest(size=size), self.peer() as peer:
                peer.send(
                    b"POST /broadcast HTTP/1.1\r\nHost: posd\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                chunk = b"%x\r\n%b\r\n" % (size, bytes(size))
                taken = peer.send_endlessly(itertools.repeat(chunk * (_MIB // size // 8), 80), 10.0)
                self.assertGreaterEqual(taken, _MIB // 2)
                self.assert_refused_and_gone(peer, 413, "too_large")
        self.assertLess(self.memory() - before, 16)

    def test_who_expects_to_be_told_to_go_on_is_told_not_to(self) -> None:
        with self.peer() as peer:
            peer.send(
                b"POST /broadcast HTTP/1.1\r\nHost: posd\r\nExpect: 100-continue\r\n"
                b"Content-Length: 10485760\r\n\r\n"
            )
            answer = peer.answer()
            self.assert_refused(answer, 413, "too_large")
            self.assertEqual(peer.rest(), b"")

    def test_large_headers(self) -> None:
        before = self.memory()
        first = _GET
        for name, raw in {
            "one that is long": first + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n",
            "one without an end": first + b"X-Long: " + b"a" * _MIB,
            "many": first + b"".join(b"X-%d: a\r\n" % n for n in range(1000)) + b"\r\n",
            "many that are long": first
            + b"".join(b"X-%d: " % n + b"a" * 1000 + b"\r\n" for n in range(90)),
            "a fold without an end": first + b"X: a\r\n" + b" a\r\n" * 200_000,
            "an address": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
            "a query string": b"GET /health/live?" + b"a=b&" * 5_000 + b" HTTP/1.1\r\n\r\n",
            "a method": b"G" * 20_000,
        }.items():
            with self.subTest(name=name), self.peer() as peer:
                peer.send(raw)
                self.assert_refused_and_gone(peer, 400, "bad_request")
        self.assertLess(self.memory() - before, 16)

    def test_a_body_that_is_cut_short_is_no_request(self) -> None:
        platform = self.make_key("platform")
        with self.peer() as peer:
            path = f"/api/{self.slug}/events"
            peer.send(request("POST", path, {"X-API-Key": platform}, _NOTE)[:-1])
            peer.end()
            self.assertEqual(peer.rest(), b"")
        count = f"SELECT count(*) FROM {self.schema}.pos_sync_logs"
        self.assertEqual(self.shop.query(count), [(0,)])

    def test_frames_as_a_body_are_no_frames(self) -> None:
        with self.peer() as peer:
            body = frame(0x1, b'{"type":"ack","id":0}')
            headers = [*handshake(), ("X-API-Key", self.key), ("Content-Length", str(len(body)))]
            peer.send(request("GET", f"/ws/pos/{self.slug}", headers) + body)
            self.assertEqual(peer.answer().status, 101)
            self.assertEqual(peer.message()["type"], "connected")
            self.assert_alive(peer)


class WrongProtocolTests(HostileCase):
    """The wrong protocol on a port: both ends are told which protocol is right."""

    def assert_logged(self, words: str) -> None:
        until(lambda: words in self.posd.log()[self._logged :], words)

    def test_http_on_a_port_with_tls_is_answered_in_http(self) -> None:
        for raw in (
            request("GET", "/health/live"),
            request("GET", f"/ws/pos/{self.slug}", [*handshake(), ("X-API-Key", self.key)]),
            b"POST http://posd/ HTTP/1.1\r\n",
        ):
            with self.peer(bare=True) as peer:
                peer.send(raw)
                answer = peer.answer()
                self.assert_refused(answer, 400, "bad_request")
                self.assertIn("https://", answer.json["error"])
                self.assert_quiet(answer)
                self.assertEqual(peer.rest(), b"")
        self.assert_logged("a client speaks HTTP without TLS on port")

    def test_a_proxy_header_before_tls_is_told_in_the_log(self) -> None:
        for header in (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12),
        ):
            with self.peer(bare=True) as peer:
                peer.send(header + b"\x16\x03\x01\x02\x00\x01")
                self.assertEqual(peer.rest(), b"")
        self.assert_logged("a client speaks the PROXY protocol on port")

    def test_tls_is_spoken_whatever_comes_in_pieces(self) -> None:
        """The first piece may be one byte. OpenSSL reads the rest."""
        with self.peer(bare=True) as peer:
            peer.send(b"\x16")
            peer.send(b"\x03\x01\x00\x01\x00")
            self.assertNotIn(b"HTTP", peer.rest())
        with self.peer() as peer:
            self.assertEqual(peer.ask("GET", "/health/live").status, 200)


class BrowserTests(HostileCase):
    """People who type an address into a browser, and pages that try to be tills."""

    def test_what_browsers_ask_for_by_themselves_is_404_and_no_noise(self) -> None:
        headers = {
            "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
            "Sec-Fetch-Site": "none",
            "Upgrade-Insecure-Requests": "1",
            "Cookie": "a=b; c",
            "If-None-Match": '"x"',
            "Range": "bytes=0-10",
        }
        for path in ("/", "/favicon.ico", "/robots.txt", "/apple-touch-icon.png", "/.well-known/x"):
            answer = self.ask("GET", path, headers=headers)
            self.assert_refused(answer, 404, "not_found")
            self.assertEqual(answer.headers["cache-control"], "no-store")
        self.assertNotIn("not let in", self.posd.log()[self._logged :])

    def test_a_person_can_read_what_needs_no_key(self) -> None:
        for path, kind in (
            ("/docs", "text/html; charset=utf-8"),
            ("/health/live", "application/json"),
        ):
            answer = self.ask(
                "GET", path, headers={"Accept": "text/html", "Sec-Fetch-Site": "none"}
            )
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, kind))

    def test_head_tells_what_get_would_and_no_more(self) -> None:
        for path, key in (
            ("/docs", None),
            (f"/api/{self.slug}/pos-status", self.key),
            ("/x", None),
        ):
            lines = (
                [("Connection", "close")]
                if key is None
                else [("Connection", "close"), ("X-API-Key", key)]
            )
            got = self.ask("GET", path, headers=lines)
            with self.peer() as peer:
                peer.send(request("HEAD", path, lines))
                head, _, body = peer.rest().partition(b"\r\n\r\n")
            self.assertEqual(body, b"")
            self.assertIn(f"Content-Length: {got.headers['content-length']}".encode(), head)
            self.assertIn(f" {got.status} ".encode(), head.partition(b"\r\n")[0])

    def test_a_page_cannot_be_a_till(self) -> None:
        """A page cannot send headers with a handshake, so it has no key. posd does not answer a preflight
        request.
        """
        page = [("Origin", "https://till.example"), ("Sec-Fetch-Site", "cross-site")]
        path = f"/ws/pos/{self.slug}?apiKey={self.key}"
        self.assert_refused(self.try_handshake(None, path=path, headers=page), 401, "unauthorized")
        preflight = [*page, ("Access-Control-Request-Method", "POST")]
        answer = self.ask("OPTIONS", f"/api/{self.slug}/events/ack", headers=preflight)
        self.assert_refused(answer, 405, "method_not_allowed")
        self.assertFalse([name for name in answer.headers if name.startswith("access-control")])

    def test_a_program_in_an_electron_app_is_a_till(self) -> None:
        """Its main process sends headers, and an Origin that posd ignores."""
        till = self.till(headers={"Origin": "file://"})
        self.assert_alive(till)
