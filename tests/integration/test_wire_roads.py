"""One till with all transports: WebSocket, server-sent events and polling have one stream and position."""

from __future__ import annotations

import ssl
import time
from typing import Any
from urllib.parse import urlencode

from tests.integration.harness import Reply
from tests.integration.roads import Response, ask, once
from tests.integration.wire import WAIT
from tests.integration.wire_case import WireCase, until
from tests.server_sent import ServerSent

_DEVICE = "POS_BAR_1"


class RoadsCase(WireCase):
    def setUp(self) -> None:
        super().setUp()
        self.key = self.shop.key("device", self.slug, _DEVICE)

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}

    def address(self, below: str = "", **query: int) -> str:
        place = f"/api/{self.slug}/events{below}"
        return f"{place}?{urlencode(query)}" if query else place

    def follow(self, after: int | None = None, *, receive_buffer: int | None = None) -> Response:
        """Connect a till with server-sent events, and read `connected`."""
        headers = self.headers if after is None else {**self.headers, "Last-Event-ID": str(after)}
        stream = Response.of(
            self.posd, self.address("/stream"), headers, receive_buffer=receive_buffer
        )
        self.addCleanup(stream.hang_up)
        self.assertEqual(stream.status, 200)
        (greeting,) = stream.take(1)
        self.assertEqual((greeting.type, greeting.id), ("connected", None))
        self.greeting = greeting.message
        return stream

    def poll(self, **query: int) -> Any:
        status, answer = once(self.posd, self.address("", **query), self.headers)
        self.assertEqual(status, 200, answer)
        return answer

    def acknowledge(self, seq: int) -> Reply:
        return self.posd.request("POST", self.address("/ack"), {"id": seq}, key=self.key)

    def assert_positions(self, events: list[ServerSent], first: int, last: int) -> None:
        self.assertEqual([each.id for each in events], [str(n) for n in range(first, last + 1)])


class RoadsTests(RoadsCase):
    def test_a_till_that_changes_its_road_sees_each_event_once(self) -> None:
        stream = self.follow()
        self.publish(2)
        seen = [each.message["id"] for each in stream.take(2)]
        stream.hang_up()
        self.publish(2)
        till = self.dial(after=2)
        seen += [each["id"] for each in till.take(2)]
        self.publish(1)
        seen += [each["id"] for each in till.take(1)]
        till.leave()
        self.publish(2)
        answer = self.poll(after=5, wait=20)
        seen += [each["id"] for each in answer["events"]]
        self.publish(1)
        answer = self.poll(after=answer["next"])
        seen += [each["id"] for each in answer["events"]]
        self.publish(1)
        seen += [each.message["id"] for each in self.follow(after=answer["next"]).take(1)]
        self.assertEqual(seen, list(range(1, 10)))

    def test_one_that_names_nothing_goes_on_from_its_cursor_on_every_road(self) -> None:
        self.poll()
        self.publish(4)
        self.assertEqual(self.acknowledge(2).json, {"success": True, "id": 2})
        self.assert_positions(self.follow().take(2), 3, 4)
        self.assertEqual(self.greeting["resumedFrom"], 2)
        till = self.dial()
        self.assert_ids(till.take(2), 3, 4)
        till.send({"type": "ack", "id": 3})
        self.reaches(_DEVICE, 3)
        self.assertEqual([each["id"] for each in self.poll()["events"]], [4])

    def test_what_was_not_polled_before_is_not_missed_on_a_websocket(self) -> None:
        self.assertEqual(self.poll()["events"], [])
        self.publish(2)
        self.assert_ids(self.dial().take(2), 1, 2)

    def test_an_event_is_the_same_on_all_of_them(self) -> None:
        stream, till = self.follow(), self.dial()
        self.publish(1)
        (by_stream,), (by_websocket,) = stream.take(1), till.take(1)
        (by_poll,) = self.poll(after=0)["events"]
        self.assertEqual(by_stream.message, by_poll)
        self.assertEqual({**by_websocket, "data": None}, {**by_poll, "data": None})
        self.assertEqual(by_stream.type, by_poll["type"])

    def test_an_acknowledgement_is_written_before_it_is_answered(self) -> None:
        self.poll()
        self.publish(5)
        for seq, cursor in ((3, 3), (1, 3), (5, 5)):
            self.assertEqual(self.acknowledge(seq).json["id"], cursor)
            self.assertEqual(self.cursor(_DEVICE), cursor)
        refused = self.acknowledge(6)
        self.assertEqual((refused.status, refused.json["code"]), (422, "beyond_head"))

    def test_the_monitor_shows_who_follows_and_when_who_polls_was_seen(self) -> None:
        def terminal() -> Any:
            status = self.posd.request("GET", f"/api/{self.slug}/pos-status", key=self.key).json
            (shown,) = status["websocket"]["terminals"]
            return shown

        self.poll()
        until(lambda: terminal()["lastSeen"], "it polled")
        self.assertIsNone(terminal()["connectedSince"])
        before = terminal()["lastSeen"]
        self.poll()
        until(lambda: terminal()["lastSeen"] > before, "it polled again")
        stream = self.follow()
        until(lambda: terminal()["connectedSince"], "it follows")
        stream.hang_up()
        until(lambda: terminal()["connectedSince"] is None, "it has left")

    def test_a_revoked_key_ends_stream_and_poll(self) -> None:
        stream = self.follow()
        waiting = ask(self.posd, self.address(wait=60), self.headers)
        self.addCleanup(waiting.close)
        self.publish(1)
        stream.take(1)
        self.assertIn(b"200 OK", waiting.recv(100))
        again = ask(self.posd, self.address(after=1, wait=60), self.headers)
        self.addCleanup(again.close)
        self.reaches(_DEVICE, 1)
        self.shop.query("UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()")
        (last,) = stream.read_to_the_end()
        self.assertEqual((last.type, last.message["code"]), ("pos_closing", 4001))
        self.assertIn(b"401 Unauthorized", again.recv(100))

    def test_a_newer_connection_ends_the_stream(self) -> None:
        stream = self.follow()
        till = self.dial()
        till.send({"type": "ping"})
        (last,) = stream.read_to_the_end()
        self.assertEqual((last.type, last.message["code"]), ("pos_closing", 4009))

    def test_a_slow_reader_is_served_from_where_it_stands_and_delays_nobody(self) -> None:
        slow, till = self.follow(after=0, receive_buffer=4096), self.dial(after=0)
        head = self.publish(300, size=20_000)
        self.assert_ids(till.take(head), 1, head)
        self.assert_positions(slow.take(head), 1, head)
        self.publish(1)
        self.assert_positions(slow.take(1), head + 1, head + 1)

    def test_nobody_follows_another_tenant(self) -> None:
        self.publish(1)
        self.shop.add_tenant(stranger := f"{self.slug}-stranger")
        for kind, device in (("tenant", None), ("device", "POS_1"), ("platform", None)):
            key = self.shop.key(kind, stranger, device)
            for method, address in (
                ("GET", self.address(after=0)),
                ("GET", self.address("/stream", last_event_id=0)),
                ("POST", self.address("/ack")),
            ):
                with self.subTest(kind=kind, address=address):
                    refused = self.posd.request(method, address, {"id": 1}, key=key)
                    self.assertEqual((refused.status, refused.json["code"]), (401, "unauthorized"))


class NodesTests(RoadsCase):
    """Two daemons on one database."""

    def setUp(self) -> None:
        super().setUp()
        self.first, self.second = self.posd, self.shop.start()
        self.addCleanup(self.second.stop)

    def test_a_till_may_change_its_node_with_its_road(self) -> None:
        stream = self.follow()
        self.publish(1)
        seen = [each.message["id"] for each in stream.take(1)]
        self.posd = self.second
        self.publish(1)
        answer = self.poll(after=1, wait=20)
        seen += [each["id"] for each in answer["events"]]
        self.publish(1)
        till = self.dial(after=2)
        seen += [each["id"] for each in till.take(1)]
        self.assertEqual(seen, [1, 2, 3])
        till.send({"type": "ping"})
        self.assertEqual(stream.read_to_the_end()[-1].message["code"], 4009)

    def test_an_acknowledgement_counts_on_both(self) -> None:
        self.poll()
        self.publish(3)
        self.posd = self.second
        self.assertEqual(self.acknowledge(2).json["id"], 2)
        self.posd = self.first
        self.assertEqual([each["id"] for each in self.poll()["events"]], [3])


class LongPollTests(RoadsCase):
    configuration = "[limits]\nconnections_per_tenant = 1"

    def test_a_client_that_goes_away_in_the_middle_leaves_nothing(self) -> None:
        for _ in range(3):
            self.wait_in_the_only_place().close()
            until(lambda: not self.is_full(), "it was noticed")

    def wait_in_the_only_place(self) -> ssl.SSLSocket:
        """Start a long poll. The request that checks it may take its place first; then poll again."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            waiting = ask(self.posd, self.address(wait=60), self.headers)
            self.addCleanup(waiting.close)
            answer = b""
            while not answer:
                full = self.is_full()
                answer = self.answered(waiting)
                if full and not answer:
                    return waiting
            self.assertIn(b"429", answer)
        raise AssertionError("others were always first")

    def answered(self, waiting: ssl.SSLSocket) -> bytes:
        """Return what has arrived so far."""
        waiting.setblocking(False)
        try:
            return waiting.recv(100)
        except ssl.SSLWantReadError:
            return b""
        finally:
            waiting.settimeout(WAIT)

    def is_full(self) -> bool:
        """Return whether the limit of connections is reached. It uses another device's key."""
        headers = {"X-API-Key": self.other}
        head = self.head()
        status, answer = once(self.posd, self.address(after=head, wait=1), headers)
        if status == 429:
            self.assertEqual(answer["code"], "too_many_connections")
        return status == 429

    def setUp(self) -> None:
        super().setUp()
        self.other = self.shop.key("device", self.slug, "POS_BAR_2")

    def test_it_holds_no_connection_to_the_database(self) -> None:
        waiting = self.wait_in_the_only_place()
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state <> 'idle' AND pid <> pg_backend_pid()"
        )
        until(lambda: self.shop.query(running) == [(0,)], "nothing runs")
        self.publish(1)
        self.assertIn(b"200 OK", waiting.recv(100))


class DrainTests(RoadsCase):
    def test_polls_are_answered_and_streams_told_when_posd_goes_down(self) -> None:
        posd = self.posd = self.shop.start()
        self.poll()
        stream = self.follow()
        seen = self.seen()
        waiting = ask(posd, self.address(after=0, wait=60), self.headers)
        self.addCleanup(waiting.close)
        until(lambda: self.seen() > seen, "the poll waits")
        began = time.monotonic()
        posd.terminate()
        (last,) = stream.read_to_the_end()
        self.assertEqual((last.type, last.message["code"]), ("pos_closing", 1001))
        self.assertIn(b'"events":[],"next":0', self.whole(waiting))
        # Not `stop`: a second SIGTERM ends Python while it exits.
        self.assertEqual(posd.process.wait(300.0), 0)
        # The poll has not waited for its end.
        self.assertLess(time.monotonic() - began, 55)

    def seen(self) -> Any:
        """Return the stored time of the terminal's last message."""
        return self.value("SELECT last_seen_at FROM dinedesk_main.pos_devices WHERE {mine}")

    def whole(self, waiting: Any) -> bytes:
        answer = b""
        while some := waiting.recv(4096):
            answer += some
        return answer
