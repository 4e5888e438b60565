"""`GET /api/{tenant}/events` and `POST …/events/ack`, as a till's HTTP library sees them."""

from __future__ import annotations

import json

from posd.errors import Forbidden
from posd.security.request_rates import account
from posd.values import KeyKind
from posd.web.http import request_turns as turns
from posd.web.http.bounded_request import BoundedRequest
from tests.delivery_case import OTHER_STREAM, STREAM
from tests.transports_case import TransportCase, reply

EVENTS = "/api/kitchen/events"
ACK = "/api/kitchen/events/ack"
STREAMED = "/api/kitchen/events/stream"


class PollTests(TransportCase):
    def test_an_answer_has_what_follows_and_where_to_go_on(self) -> None:
        answer = self.ask(f"{EVENTS}?after=8")
        self.assertEqual((answer.status, answer.headers["cache-control"]), (200, "no-store"))
        events = answer.json.pop("events")
        self.assertEqual(
            json.loads(answer.body) | {"events": None},
            {
                "success": True,
                "events": None,
                "next": 10,
                "hasMore": False,
                "lastEventId": 10,
                "streamId": str(STREAM),
                "resync": None,
            },
        )
        self.assertEqual([each["id"] for each in events], [9, 10])

    def test_events_are_as_they_were_written(self) -> None:
        _, line = self.connect(at=10)
        self.commit()
        self.stands()
        answer = self.ask(f"{EVENTS}?after=10")
        (event,) = (each for each in line.messages if "data" in each)
        written = json.dumps(event, separators=(",", ":")).encode()
        self.assertIn(b'"events":[' + written + b"]", answer.body)

    def test_whether_there_is_more_is_said(self) -> None:
        answer = self.ask(f"{EVENTS}?after=0&limit=3").json
        self.assertEqual((answer["next"], answer["hasMore"], answer["lastEventId"]), (3, True, 10))

    def test_types_are_separated_by_commas(self) -> None:
        answer = self.ask(f"{EVENTS}?after=0&types=new_order,order_updated").json
        self.assertEqual((answer["events"], answer["next"], answer["hasMore"]), ([], 10, False))
        self.assertEqual(len(self.ask(f"{EVENTS}?after=0&types=other,note").json["events"]), 10)

    def test_why_it_must_reload_is_said(self) -> None:
        self.stands(pruned=5)
        for query, reason in (
            ("after=2", "retention"),
            ("after=11", "ahead"),
            (f"after=8&stream_id={OTHER_STREAM}", "reset"),
            (f"after=8&streamId={OTHER_STREAM}", "reset"),
            (f"after=8&stream_id={STREAM}", None),
        ):
            with self.subTest(query=query):
                self.assertEqual(self.ask(f"{EVENTS}?{query}").json["resync"], reason)

    def test_a_terminal_goes_on_from_its_cursor(self) -> None:
        self.stands(acked=9)
        answer = self.ask(EVENTS, X_Device_ID="BAR").json
        self.assertEqual([each["id"] for each in answer["events"]], [10])
        self.assertEqual(self.progress_store.settled, [(7, "BAR")])

    def test_a_key_of_a_device_names_it(self) -> None:
        self.keys.kind, self.keys.key_device = KeyKind.DEVICE, "BAR"
        self.stands(acked=9)
        self.assertEqual(len(self.ask(EVENTS).json["events"]), 1)

    def test_one_without_a_name_has_to_say_where(self) -> None:
        self.assertEqual(self.refusal(EVENTS), (400, "position_required"))

    def test_what_cannot_be_is_refused_by_name(self) -> None:
        for query in (
            "after=-1",
            "after=x",
            "after=9223372036854775808",
            "after=0&limit=0",
            "after=0&limit=501",
            "after=0&wait=61",
            "after=0&wait=-1",
            "after=0&types=",
            "after=0&types=a,,b",
            "after=0&types=A",
            "after=0&stream_id=7",
        ):
            with self.subTest(query=query):
                self.assertEqual(self.refusal(f"{EVENTS}?{query}"), (400, "invalid_field"))

    def test_only_tills_may(self) -> None:
        for kind in (KeyKind.PLATFORM, KeyKind.ADMIN):
            self.keys.kind = kind
            for target, method in ((f"{EVENTS}?after=0", "GET"), (STREAMED, "GET"), (ACK, "POST")):
                with self.subTest(kind=kind, target=target):
                    body = b"{}" if method == "POST" else b""
                    refused = self.refusal(target, method=method, body=body)
                    self.assertEqual(refused, (403, "forbidden"))

    def test_who_is_refused_at_a_websocket_is_refused_here(self) -> None:
        for target in (f"{EVENTS}?after=0", STREAMED):
            self.keys.refusal = None
            with self.subTest(target=target):
                self.assertEqual(self.refusal(target, X_API_Key=None)[0], 401)
                tenant = self.refusal(target, X_Tenant_ID="bar")
                self.assertEqual(tenant, (403, "tenant_mismatch"))
                self.keys.refusal = Forbidden("It has one.", code="device_key_required")
                named = self.refusal(target, X_Device_ID="BAR")
                self.assertEqual(named, (403, "device_key_required"))

    def test_a_database_that_is_away_is_503(self) -> None:
        self.store.away = True
        for target in (f"{EVENTS}?after=0", STREAMED):
            self.assertEqual(self.refusal(target), (503, "unavailable"))


class LongPollTests(TransportCase):
    def test_it_is_answered_when_there_is_an_event(self) -> None:
        socket = self.send(f"{EVENTS}?after=10&wait=30")
        self.assertEqual(socket.value(), b"")
        self.commit()
        answer = reply(socket.value())
        self.assertEqual([each["id"] for each in answer.json["events"]], [11])

    def test_it_is_a_tills_connection_while_it_waits(self) -> None:
        socket = self.send(f"{EVENTS}?after=10&wait=60")
        self.assertEqual((self.connections.open, self.site.open_channels), (1, 0))
        self.clock.pump([5.0] * 8)
        self.assertFalse(socket.disconnected or socket.disconnecting)
        self.assertEqual(socket.value(), b"")
        # Before a proxy gives up: nginx does after 60 s, Debian's HAProxy after 50 s. It answered 504
        # (modal-labs/modal-client#7, mobtimeapp/mobtime#262).
        self.clock.advance(5)
        self.assertEqual(reply(socket.value()).json["events"], [])
        self.assertEqual((self.connections.open, self.site.open_channels), (0, 1))

    def test_an_acknowledgement_with_the_same_key_does_not_wait_for_those_that_wait(self) -> None:
        self.patch(BoundedRequest, "account", account(1, None, shared=True))
        self.patch(turns, "AT_ONCE", 2)
        for _ in range(2):
            self.send(f"{EVENTS}?after=10&wait=30")
        self.assertEqual(self.connections.open, 2)
        self.stands(acked=10)
        self.assertEqual(
            self.ask(ACK, method="POST", body=b'{"id":10}', X_Device_ID="BAR").status, 200
        )

    def test_the_same_connection_polls_again(self) -> None:
        socket = self.send(f"{EVENTS}?after=10&wait=60")
        self.commit()
        socket.clear()
        self.stands()
        head = b"Host: posd\r\nX-API-Key: pos_good\r\n\r\n"
        socket.send(b"GET /api/kitchen/events?after=11&wait=60 HTTP/1.1\r\n" + head)
        self.assertEqual(socket.value(), b"")
        self.commit()
        self.assertEqual(reply(socket.value()).json["next"], 12)

    def test_a_client_that_goes_away_ends_it(self) -> None:
        socket = self.send(f"{EVENTS}?after=10&wait=60")
        socket.hang_up()
        self.assertEqual((self.connections.open, self.site.open_channels), (0, 0))
        self.assertEqual(self.hub.channels.tenants, [])

    def test_one_that_went_while_its_key_was_looked_up_does_not_wait(self) -> None:
        self.store.pending = []
        socket = self.send(f"{EVENTS}?after=10&wait=60")
        socket.hang_up()
        self.store.pending.pop(0).callback(None)
        self.assertEqual((self.connections.open, self.hub.channels.tenants), (0, []))


class AckTests(TransportCase):
    def test_those_of_all_terminals_of_a_key_are_written_together(self) -> None:
        """With a slow database, requests share statements and do not wait for each other's turn."""
        self.patch(BoundedRequest, "account", account(1, None, shared=True))
        self.patch(turns, "AT_ONCE", 2)
        self.store.pending = []
        for number in range(10):
            self.send(ACK, method="POST", body=b'{"id":7}', X_Device_ID=f"TILL_{number}")
            self.clock.advance(0)
        self.assertEqual(len(self.progress_store.settled), 10)

    def acknowledge(self, body: bytes, device: str | None = "BAR") -> tuple[int, object]:
        answer = self.ask(ACK, method="POST", body=body, X_Device_ID=device)
        return answer.status, answer.json.get("code", answer.json.get("id"))

    def test_it_is_answered_with_the_cursor(self) -> None:
        self.stands(acked=8)
        answer = self.ask(ACK, method="POST", body=b'{"id":7}', X_Device_ID="BAR")
        self.assertEqual((answer.status, answer.json), (200, {"success": True, "id": 8}))
        self.assertEqual(self.progress_store.acks, [7])

    def test_what_cannot_be_is_refused(self) -> None:
        self.stands(acked=8)
        stream = str(OTHER_STREAM).encode()
        for body, device, refused in (
            (b'{"id":11}', "BAR", (422, "beyond_head")),
            (b'{"id":7}', None, (422, "no_device")),
            (b'{"id":7,"streamId":"%b"}' % stream, "BAR", (409, "stream_changed")),
            (b'{"id":7,"stream_id":"%b"}' % stream, "BAR", (409, "stream_changed")),
            (b'{"id":-1}', "BAR", (400, "invalid_field")),
            (b'{"id":"7"}', "BAR", (400, "invalid_field")),
            (b"{}", "BAR", (400, "missing_field")),
        ):
            with self.subTest(body=body):
                self.assertEqual(self.acknowledge(body, device), refused)
        self.assertEqual(self.progress_store.acks, [])

    def test_it_is_not_answered_where_it_was_not_written(self) -> None:
        self.stands(acked=3)
        self.assertEqual(self.acknowledge(b'{"id":7}'), (503, "unavailable"))

    def test_a_whole_number_may_have_a_point(self) -> None:
        self.stands(acked=7)
        self.assertEqual(self.acknowledge(b'{"id":7.0}'), (200, 7))
