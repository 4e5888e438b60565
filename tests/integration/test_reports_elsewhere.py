"""Bug reports of other systems, tried with posd: tills, real-time servers, proxies.

Each test names the public report. The systems differ from posd; the test tries the symptom.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import sys
import threading
import time
from contextlib import closing
from typing import Any
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from posd.broadcaster import BlockingBroadcaster
from tests.integration.harness import Reply, Shop, free_port
from tests.integration.peer import Peer
from tests.integration.rest_case import RestCase
from tests.integration.roads import Response
from tests.integration.wire import WAIT, Ended, Till
from tests.integration.wire_case import until

_DEVICE = "POS_BAR_1"
_BOM = b"\xef\xbb\xbf"
_HOUR = 3600


class ReportsCase(RestCase):
    def order(self, order_id: str, **members: object) -> Reply:
        """Publish an order by REST."""
        return self.ask("POST", "/orders", {"orderId": order_id, **members}, self.platform)

    def shown(self, order_id: str) -> Any:
        """Return an order as the platform sees it."""
        return self.ask("GET", f"/orders/{quote(order_id, safe='')}", key=self.platform).json

    def published(self, count: int) -> None:
        """Wait until the stream has so many events."""
        until(lambda: len(self.events()) == count, f"{count} events")

    def pending(self) -> list[str]:
        """Return the ids of the open orders."""
        return [each["orderId"] for each in self.ask("GET", "/orders/pending").json["orders"]]

    def stream(self, query: str = "", **headers: str) -> Response:
        """Follow with server-sent events. `connected` is not read yet."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        stream = Response.of(
            self.posd, f"/api/{self.slug}/events/stream{query}", {"X-API-Key": self.key, **named}
        )
        self.addCleanup(stream.hang_up)
        return stream


class RequestTests(ReportsCase):
    """Requests of platforms and their libraries."""

    def test_an_order_behind_a_byte_order_mark_is_taken(self) -> None:
        """n8n-io/n8n#35933, SharePoint/sp-dev-docs#1123: webhooks of Windows programs begin with one."""
        body = _BOM + json.dumps({"orderId": "B1", "customerName": "Ann"}).encode()
        self.assertEqual(self.ask("POST", "/orders", body, self.platform).status, 201)
        report = {"reportDate": "2026-11-29", "totalSales": 10, "totalOrders": 1}
        reply = self.ask("POST", "/reports/daily", _BOM + json.dumps(report).encode())
        self.assertEqual(reply.status, 200, reply.json)
        till = self.dial()
        till.send_text(_BOM + b'{"type":"ping","id":1}')
        self.assertEqual(till.receive()["echo"], 1)

    def test_a_compressed_body_is_415_and_says_what_is_wrong(self) -> None:
        """HarperFast/harper#1438, jetty/jetty.project#5285: the answer was 500, 501 or 400 "invalid JSON"."""
        body = gzip.compress(b'{"orderId":"G1"}')
        reply = self.ask("POST", "/orders", body, self.platform, Content_Encoding="gzip")
        self.assert_refused(reply, 415, "unsupported_media_type")
        self.assertIn("Content-Encoding", reply.json["error"])
        self.assertEqual(reply.headers["accept-encoding"], "identity")
        reply = self.ask(
            "POST", "/orders", {"orderId": "G2"}, self.platform, Content_Encoding="identity"
        )
        self.assertEqual(reply.status, 201)

    def test_an_offset_whose_plus_was_not_encoded_is_read(self) -> None:
        """up-banking/api#116, OData/WebApi#2211: east of Greenwich every query with a time was refused."""
        self.order("P1")
        for since in ("2020-01-01T00:00:00+01:00", "2020-01-01T00:00:00.5+0100"):
            reply = self.ask("GET", f"/orders/pending?since={since}")
            self.assertEqual((reply.status, reply.json["count"]), (200, 1), since)
        # The times differ by an hour, so the offset is applied.
        shop = self.shop.query(
            "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '30 minutes', 'YYYY-MM-DD\"T\"HH24:MI:SS')"
        )[0][0]
        found = [
            self.ask("GET", f"/orders/pending?since={shop}+{offset}").json["count"]
            for offset in ("00:00", "01:00")
        ]
        self.assertEqual(found, [0, 1])

    def test_a_request_that_offers_http_2_is_answered_in_http_1(self) -> None:
        """apache/trafficserver#3813: "Upgrade: h2c" of Java's HttpClient was answered with 400."""
        body = b'{"orderId":"H1"}'
        peer = Peer.dial(self.posd)
        self.addCleanup(peer.close)
        peer.send(
            b"POST /api/%b/orders HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %b\r\n"
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (self.slug.encode(), self.platform.encode(), len(body), body)
        )
        self.assertEqual(peer.answer().status, 201)

    def test_connection_upgrade_without_an_upgrade_is_an_ordinary_request(self) -> None:
        """nginx-proxy/nginx-proxy#37: the usual configuration sends "Connection: upgrade" with every
        request.
        """
        reply = self.ask("POST", "/orders", {"orderId": "N1"}, self.platform, Connection="upgrade")
        self.assertEqual(reply.status, 201)

    def test_a_proxys_own_authorization_beside_the_key_does_not_count(self) -> None:
        """Sanket9225/UsenetStreamer#76: the password that a proxy added was taken for the key."""
        reply = self.ask("GET", "/orders/pending", Authorization="Basic dXNlcjpwYXNz")
        self.assertEqual(reply.status, 200)


class StreamTests(ReportsCase):
    """Server-sent events and polls, with the behaviour of libraries and proxies."""

    def test_a_client_that_keeps_its_url_goes_on_from_its_header(self) -> None:
        """Yaffle/EventSource#167, EventSource/eventsource#27: the first position was named for ever."""
        self.publish(5)
        stream = self.stream("?last_event_id=1", Last_Event_ID="4")
        greeting, event = stream.take(2)
        self.assertEqual((greeting.message["resumedFrom"], event.id), (4, "5"))
        till = self.dial(after=1, headers={"Last-Event-ID": "4"})
        self.assertEqual(till.connected["resumedFrom"], 4)

    def test_an_empty_last_event_id_is_none(self) -> None:
        """Scille/parsec-cloud#7034: before its first event a library sends an empty header."""
        self.publish(2)
        (greeting,) = self.stream(Last_Event_ID="").take(1)
        self.assertIsNone(greeting.message["resumedFrom"])
        self.assertIsNone(self.dial(headers={"Last-Event-ID": ""}).connected["resumedFrom"])

    def test_what_is_no_position_is_refused_and_not_taken_for_the_beginning(self) -> None:
        """athrvk/vayu#21: a lost position became 0, and the whole history was sent again."""
        for named in ("undefined", "null", "NaN", "-1"):
            self.assertEqual(self.stream(Last_Event_ID=named).status, 400, named)

    def test_no_proxy_may_compress_or_hold_back_the_stream(self) -> None:
        """Mng-dev-ai/agentrove#869, facebook/create-react-app#1633: compression delayed sparse events."""
        head = self.stream().headers
        self.assertIn("no-transform", head["cache-control"])
        self.assertEqual(head["x-accel-buffering"], "no")

    def test_a_proxy_of_http_1_0_gets_a_stream_without_chunks(self) -> None:
        """hashbang/shell-server#119: nginx uses HTTP/1.0 for its upstream by default."""
        self.publish(1)
        peer = Peer.dial(self.posd)
        self.addCleanup(peer.close)
        peer.send(
            b"GET /api/%b/events/stream?last_event_id=0 HTTP/1.0\r\nHost: localhost\r\nX-API-Key: %b\r\n\r\n"
            % (self.slug.encode(), self.key.encode())
        )
        seen = peer.said_until(b"id: 1\n")
        self.assertTrue(seen.startswith(b"HTTP/1.0 200"))
        self.assertNotIn(b"chunked", seen.lower())

    def test_the_handshake_takes_any_origin(self) -> None:
        """crossbario/autobahn-python#1302, django/daphne#72: the origin of apps in a web view was refused."""
        for origin in ("file://", "null", "capacitor://localhost", "qrc://", "app://till", "?"):
            self.dial(headers={"Origin": origin}).leave()


class OrderTests(ReportsCase):
    """Orders of shops' software."""

    def hooked(self, **columns: object) -> str:
        """Insert an order into the shop's own table. Return its id."""
        columns = {"customer_name": "Ann", "total_amount": 12.5, **columns}
        names = ", ".join(columns)
        values = ", ".join(["%s"] * len(columns))
        (order_id,) = self.rows(
            f"INSERT INTO {{schema}}.orders ({names}) VALUES ({values}) RETURNING id",
            *columns.values(),
        )[0]
        return str(order_id)

    def test_an_order_that_is_paid_after_it_was_cancelled_is_to_be_made(self) -> None:
        """woocommerce/woocommerce#20991, #20928: unpaid, cancelled by a timer, then paid: without a
        notification.
        """
        order_id = self.hooked(status="pending")
        until(lambda: self.pending() == [order_id], "it is to be made")
        for count, status in enumerate(("cancelled", "processing"), 2):
            self.rows("UPDATE {schema}.orders SET status = %s", status)
            self.published(count)
        self.assertEqual(self.pending(), [order_id])
        self.assertEqual(self.events()[-1][2]["previousStatus"], "cancelled")

    def test_a_new_order_under_the_id_of_an_earlier_one_is_made(self) -> None:
        """alphabit-technology/erpnext-restaurant#57, litedb-org/LiteDB#256: ids of deleted rows were reused.

        The new order was a change of the old one, which was already printed, so no till made it.
        """
        order_id = self.hooked()
        self.published(1)
        report = {"orderId": order_id, "status": "printed", "deviceId": "POS_1"}
        self.assertEqual(self.ask("POST", "/orders/print", report).status, 200)
        self.rows("UPDATE {schema}.orders SET status = 'completed'")
        self.published(2)
        self.rows("TRUNCATE {schema}.orders RESTART IDENTITY CASCADE")
        self.assertEqual(self.hooked(customer_name="Bob", total_amount=20), order_id)
        self.published(3)
        _, kind, data = self.events()[-1]
        self.assertEqual((kind, data["customerName"], data["version"]), ("new_order", "Bob", 3))
        self.assertNotIn("previousStatus", data)
        (shown,) = self.ask("GET", "/orders/pending").json["orders"]
        self.assertEqual((shown["customerName"], shown["printStatus"]), ("Bob", "pending"))
        self.assertEqual(self.shown(order_id)["delivery"]["terminals"], [])
        told = f"an order id was used again: tenant={self.slug} order={order_id}"
        until(lambda: told in self.posd.log(), "the operators are told")
        # It continues like any other.
        self.ask("POST", "/orders/print", report)
        self.assertEqual(self.pending(), [])
        self.rows("UPDATE {schema}.orders SET status = 'ready'")
        self.published(4)
        self.assertEqual(self.events()[-1][1], "order_updated")

    def test_an_order_that_begins_as_failed_is_new_when_it_is_paid(self) -> None:
        """woocommerce-mercadopago#21: an order that was paid later was not announced."""
        order_id = self.hooked(status="failed")
        self.publish(1)
        self.rows("UPDATE {schema}.orders SET status = 'confirmed'")
        self.published(2)
        _, kind, data = self.events()[-1]
        self.assertEqual((kind, data["orderId"]), ("new_order", order_id))

    def test_an_order_that_was_cancelled_before_it_was_printed_is_not_printed_any_more(
        self,
    ) -> None:
        """odoo/odoo#229039, coopcycle/coopcycle-app#1853: the kitchen continued with cancelled orders."""
        self.order("K1")
        self.ask("PATCH", "/orders/K1", {"status": "cancelled"}, self.platform)
        self.assertEqual(self.pending(), [])
        kinds = [(kind, data["status"]) for _, kind, data in self.events()]
        self.assertEqual(kinds, [("new_order", "confirmed"), ("order_updated", "cancelled")])

    def test_an_order_that_is_sent_again_after_a_timeout_is_one_order(self) -> None:
        """odoo/odoo#40567, frappe/erpnext#12971: the answer was lost, and the order was made twice."""
        for _ in range(2):
            self.send_and_leave(
                "POST", "/orders", {"orderId": "T1", "totalAmount": 5}, self.platform
            )
        until(lambda: "T1" in self.pending(), "it is there")
        reply = self.order("T1", totalAmount=5)
        self.assertEqual((reply.status, reply.json["id"]), (200, None))
        self.assertEqual([kind for _, kind, _ in self.events()], ["new_order"])

    def test_nothing_is_a_number_and_less_than_nothing_too(self) -> None:
        """ordercloud-api/ordercloud-javascript-sdk#73: zero was dropped like a missing value."""
        items = [
            {"name": "Sauce", "price": 0, "quantity": 1},
            {"name": "Voucher", "price": -2.5, "quantity": 1},
            {"name": "Olives", "price": 3, "quantity": 0.5},
        ]
        self.order("Z1", totalAmount=0, deliveryFee=0, discount=0, items=items)
        shown = self.shown("Z1")
        self.assertEqual((shown["totalAmount"], shown["deliveryFee"]), (0, 0))
        self.assertEqual([each["price"] for each in shown["items"]], [0, -2.5, 3])
        self.assertEqual(shown["items"][2]["specialInstructions"], "Quantity: 0.5")

    def test_leading_zeros_and_signs_are_part_of_an_orders_name(self) -> None:
        """odoo/odoo#15814, frappe/cordova-wrapper#28: a number lost its zeros, and named another order or
        none.
        """
        for name in ("0042", "42", "#42", "A/7", "ü 1"):
            self.assertEqual(self.order(name).status, 201, name)
            self.assertEqual(self.shown(name)["orderId"], name)
            report = self.ask("POST", "/orders/print", {"orderId": name, "status": "printed"})
            self.assertEqual(report.json["orderId"], name)
        self.assertEqual(self.pending(), [])

    def test_an_hour_that_is_missing_or_twice_is_a_time_all_the_same(self) -> None:
        """nodatime/nodatime#1057, nadineproject/nadine#46: orders failed at the change of the clocks."""
        for local, instant in (
            ("2027-03-28T01:30:00", "2027-03-28T01:30:00.000Z"),
            ("2027-10-31T01:30:00", "2027-10-31T00:30:00.000Z"),
        ):
            self.order(local, scheduledTime=local)
            self.assertEqual(self.shown(local)["scheduledFor"], instant)

    def test_names_and_notes_of_every_script_come_back_as_they_are(self) -> None:
        """coopcycle/coopcycle-app#1887, opensourcepos/opensourcepos#306: emoji and scripts were lost."""
        for number, text in enumerate(("שלום עולם", "🍕👨‍👩‍👧‍👦", "a\u202eb", "x" * 5_000)):
            self.order(str(number), customerName=text, specialInstructions=text * 3)
            shown = self.shown(str(number))
            self.assertEqual((shown["customerName"], shown["notes"]), (text, text * 3))


class MoneyTests(ReportsCase):
    """Cards and points, with typed numbers and repeated calls."""

    def test_a_card_keeps_its_zeros_and_its_signs(self) -> None:
        """Setono/SyliusGiftCardPlugin#283: a number as printed on the card was refused."""
        for name in ("0012345678", "GC-12/34", "AB 12 CD"):
            self.ask("POST", "/gift-cards", {"cardNumber": name, "amount": 10}, self.platform)
            typed = quote(f" {name.lower()} ", safe="")
            reply = self.ask("GET", f"/gift-cards/{typed}/balance")
            self.assertEqual((reply.status, reply.json.get("cardNumber")), (200, name))
        self.assertEqual(self.ask("GET", "/gift-cards/12345678/balance").status, 404)

    def test_points_for_an_order_are_added_once(self) -> None:
        """OCA/pos#185: orders of an offline till were sent again, and the points were added again."""
        points = {"points": 10, "orderId": "77"}
        replies = [self.ask("POST", "/loyalty/07700900123/add", points) for _ in range(3)]
        self.assertEqual(replies[0].json["newPoints"], 10)
        self.assertEqual({each.json["code"] for each in replies[1:]}, {"already_earned"})


class ConnectionTests(ReportsCase):
    """Terminals that connect, disconnect and reconnect."""

    def test_the_end_of_an_old_connection_does_not_take_the_new_one_offline(self) -> None:
        """uProxy-p2p#2260, ChatSecureAndroid#149: the end of an old connection hid the new one."""
        key = self.shop.key("device", self.slug, _DEVICE)
        old = self.dial(key=key)
        old.send({"type": "ping"})
        old.receive()
        old.answering = False
        new = self.dial(key=key)
        new.send({"type": "ping"})
        new.receive()
        self.assertEqual(old.ended().code, 4009)
        old.hang_up()

        def connected() -> list[str]:
            status = self.ask("GET", "/pos-status").json["websocket"]
            return [each["deviceId"] for each in status["terminals"] if each["connectedSince"]]

        until(lambda: connected() == [_DEVICE], "it is shown as connected")
        self.publish(1)
        self.assertEqual(new.receive()["id"], 1)
        self.assertEqual(connected(), [_DEVICE])

    def test_two_machines_with_one_key_do_not_send_each_other_away_without_end(self) -> None:
        """emqx/emqx#935, mqttjs/MQTT.js#684: they did, here 140 times per second, and no log named the
        reason.
        """
        key = self.shop.key("device", self.slug, _DEVICE)
        until_when = time.monotonic() + 4
        endings: list[int] = []

        def till() -> None:
            while (left := until_when - time.monotonic()) > 0:
                line = Till.dial(self.posd, f"/ws/pos/{self.slug}", {"X-API-Key": key})
                line.send({"type": "ping"})
                try:
                    while True:
                        line.receive(left)
                except Ended as ended:
                    endings.append(ended.code)
                except TimeoutError:
                    pass
                line.hang_up()

        machines = [threading.Thread(target=till) for _ in range(2)]
        for machine in machines:
            machine.start()
        for machine in machines:
            machine.join()
        self.assertEqual(endings, [4009] * len(endings))
        self.assertIn(len(endings), range(5, 8))
        told = f"a device is contested: tenant={self.slug} device={_DEVICE}"
        self.assertEqual(self.posd.log().count(told), 1)

    def test_a_ping_is_answered_while_a_long_history_is_sent(self) -> None:
        """crossbario/autobahn-python#1327, WebSocket-Node#229: the pong waited behind all queued data."""
        self.publish(400, 20_000)
        till = self.dial(after=0, receive_buffer=16384)
        till.read_some(4096)
        self.assertEqual(till.send_ping(b"there?"), b"there?")
        self.assertLess(len(till.frames), 400)

    def test_clients_of_strict_rules_trust_the_certificate_of_a_private_authority(self) -> None:
        """python/cpython#138193, ioBroker/ioBroker.js-controller#515: no key identifier, and at most 825
        days.
        """
        trust = self.posd.tls()
        trust.verify_flags |= ssl.VERIFY_X509_STRICT
        plain = socket.create_connection(("127.0.0.1", self.posd.port), WAIT)
        with trust.wrap_socket(plain, server_hostname="localhost") as secure:
            shown = secure.getpeercert()
        assert shown is not None
        begins, ends = (
            ssl.cert_time_to_seconds(str(shown[at])) for at in ("notBefore", "notAfter")
        )
        self.assertLessEqual(ends - begins, 825 * 86400)


class ListenerTests(SynchronousTestCase):
    """Listeners without TLS, and programs with persistent connections."""

    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)

    def test_who_has_finished_sending_is_answered_all_the_same(self) -> None:
        """elastic/elasticsearch#11466, httpwg/http-core#22: netcat closes its half, and got no answer."""
        port = free_port()
        self.shop.start(
            f'[[listen]]\nname = "local"\nendpoint = "tcp:port={port}:interface=127.0.0.1"\n'
            "trusted = true\ntls = false"
        )
        body = b'{"tenant":"kitchen","event":{"type":"note","data":{}}}'
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), WAIT) as client:
                client.sendall(
                    b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                client.shutdown(socket.SHUT_WR)
                said = b"".join(iter(lambda client=client: client.recv(65536), b""))  # type: ignore[misc]
            self.assertTrue(said.startswith(b"HTTP/1.1 200"), said)

    def test_a_publisher_whose_kept_connection_is_dead_publishes_once(self) -> None:
        """nodejs/node#20256, InsForge/InsForge#1813: the first call on a closed connection failed."""
        posd = self.shop.start()
        key = self.shop.key("platform")
        with closing(BlockingBroadcaster(posd.url, key, ca=posd.ca)) as broadcaster:
            broadcaster.publish("kitchen", "note", {"n": 1})
            posd.stop()
            self.shop.start(port=posd.port)
            broadcaster.publish("kitchen", "note", {"n": 2})
        published = "SELECT event_data ->> 'n' FROM dinedesk_kitchen.pos_events ORDER BY seq"
        self.assertEqual(self.shop.query(published), [("1",), ("2",)])


# Like `twistd`, with a system clock that differs by the seconds in a file.
_SET_CLOCK = """
import os, sys, time
real, place = time.time, sys.argv.pop(1)
time.time = lambda: real() + (float(open(place).read()) if os.path.exists(place) else 0)
from twisted.scripts.twistd import run
run()
"""


class ClockTests(SynchronousTestCase):
    """twisted/twisted#2424, #3899, #5552: timers stop when the system clock is set back."""

    def setUp(self) -> None:
        self.shop = Shop.open()
        self.addCleanup(self.shop.close)
        self.clock = self.shop.folder / "clock"
        self.posd = self.shop.start(
            '[delivery]\nheartbeat = "5s"',
            twistd=(sys.executable, "-c", _SET_CLOCK, str(self.clock)),
        )

    def set_clock(self, seconds: int) -> None:
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self.clock)

    def dial(self) -> Till:
        key = self.shop.key("device", device=_DEVICE)
        till = Till.dial(self.posd, "/ws/pos/kitchen", {"X-API-Key": key})
        self.addCleanup(till.hang_up)
        return till

    def pinged(self, till: Till) -> None:
        """Read until posd has checked the connection once more."""
        before = till.pings
        deadline = time.monotonic() + WAIT
        while till.pings == before:
            till.read_some(65536, deadline - time.monotonic())

    def test_a_clock_that_is_set_back_stops_no_timer(self) -> None:
        till = self.dial()
        self.set_clock(-_HOUR)
        self.shop.publish("kitchen", "note", {})
        self.assertEqual(till.receive()["id"], 1)
        till.send({"type": "ack", "id": 1})
        cursor = "SELECT acked_seq FROM dinedesk_main.pos_cursors WHERE device_id = %s"
        until(lambda: self.shop.query(cursor, (_DEVICE,)) == [(1,)], "the cursor is written")
        self.pinged(till)

    def test_a_clock_that_is_set_forward_sends_no_till_home(self) -> None:
        till = self.dial()
        # No data of the till is under way that posd would receive after that.
        self.assertTrue(till.next_is_pong(1))
        self.set_clock(_HOUR)
        self.pinged(till)
        self.pinged(till)
        self.shop.publish("kitchen", "note", {})
        self.assertEqual(till.receive()["id"], 1)
