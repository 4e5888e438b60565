"""Requests and reports of tills by REST: open orders, printing, heartbeats. Through a real daemon."""

from __future__ import annotations

import http.client
import json
from typing import Any

from twisted.internet.defer import Deferred

from posd.client import pending_orders
from tests.integration.harness import Reply
from tests.integration.rest_case import RestCase
from tests.integration.wire_case import until


class TerminalCase(RestCase):
    """A shop with one order. `key` is that of the terminal POS_1."""

    def setUp(self) -> None:
        super().setUp()
        self.tenant_key = self.key
        self.key = self.shop.key("device", self.slug, "POS_1")
        self.place("A-1")

    def place(self, order_id: str, **more: object) -> None:
        body = {"orderId": order_id, "totalAmount": 5, **more}
        self.assertEqual(self.ask("POST", "/orders", body, self.platform).status, 201)

    def report(self, kind: str, body: object, key: str | None = None, **headers: str) -> Reply:
        return self.ask("POST", f"/orders/{kind}", body, key, **headers)

    def told(self, kind: str, **body: object) -> str:
        """Return the print status that posd answers."""
        reply = self.report(kind, {"orderId": "A-1", **body})
        self.assertEqual(reply.status, 200, reply.json)
        self.assertEqual({*reply.json}, {"success", "orderId", "printStatus"})
        return str(reply.json["printStatus"])

    def delivery(self, order_id: str = "A-1") -> Any:
        return self.ask("GET", f"/orders/{order_id}", key=self.platform).json["delivery"]

    def devices(self) -> list[str]:
        rows = self.rows(
            "SELECT device_id FROM dinedesk_main.pos_devices WHERE {mine} ORDER BY device_id"
        )
        return [device for (device,) in rows]

    def undelivered(self) -> int:
        return int(self.ask("GET", "/pos-status").json["undelivered"])


class ReportTests(TerminalCase):
    def test_an_order_goes_its_way_to_paper(self) -> None:
        self.assertEqual(self.told("received", status="queued_for_print"), "sent_to_pos")
        self.assertEqual(self.told("accepted"), "sent_to_pos")
        self.assertEqual(self.told("print", status="failed", reason="no paper"), "failed")
        self.assertEqual(self.told("print", status="printed"), "printed")
        order = self.ask("GET", "/orders/A-1", key=self.platform).json
        self.assertEqual(order["printStatus"], "printed")
        delivery = order["delivery"]
        self.assertIsNone(delivery["pushedAt"])
        self.assertNotIn(
            None, [delivery[f"{each}At"] for each in ("received", "accepted", "printed")]
        )
        (terminal,) = delivery["terminals"]
        self.assertEqual(terminal["deviceId"], "POS_1")
        self.assertNotIn(None, terminal.values())
        self.assertEqual(self.value("SELECT version FROM {schema}.pos_orders"), 1)

    def test_it_never_goes_back_and_a_repetition_is_no_mistake(self) -> None:
        for kind, status, held in (
            ("print", "printed", "printed"),
            ("print", "printed", "printed"),
            ("print", "failed", "printed"),
            ("received", "queued_for_print", "printed"),
            ("accepted", "accepted", "printed"),
        ):
            self.assertEqual(self.told(kind, status=status), held)
        first = self.delivery()["printedAt"]
        self.told("print", status="printed")
        self.assertEqual(self.delivery()["printedAt"], first)

    def test_an_idempotency_key_changes_nothing_about_that(self) -> None:
        for status in ("failed", "printed", "failed"):
            reply = self.report(
                "print", {"orderId": "A-1", "status": status}, Idempotency_Key="one"
            )
            self.assertEqual(reply.status, 200)
        self.assertEqual(reply.json["printStatus"], "printed")

    def test_both_spellings_are_read_and_must_agree(self) -> None:
        body = {
            "order_id": "A-1",
            "status": "printed",
            "device_id": "POS_1",
            "printed_at": "2026-11-22T10:00:00Z",
            "tenant": self.slug,
            "printer_info": {"model": "X"},
        }
        self.assertEqual(self.report("print", body).status, 200)
        self.assert_refused(self.report("print", {**body, "orderId": "B"}), 400, "invalid_field")

    def test_a_tills_clock_is_believed_for_the_past_only(self) -> None:
        self.told("print", status="printed", printedAt="2020-02-02T12:00:00Z")
        self.assertEqual(self.delivery()["printedAt"], "2020-02-02T12:00:00.000Z")
        for order_id, when in (("A-2", "2099-01-01T00:00:00Z"), ("A-3", "teatime"), ("A-4", [])):
            self.place(order_id)
            body: object = {"orderId": order_id, "status": "printed", "printedAt": when}
            self.assertEqual(self.report("print", body).status, 200)
            self.assertRegex(self.delivery(order_id)["printedAt"], "^20[2-8]")

    def test_that_an_order_was_paid_is_told_to_the_other_tills_once(self) -> None:
        for clock in ("2026-11-22T10:00:00Z", "2026-11-22T10:00:07Z"):
            body = {"orderId": "A-1", "status": "paid", "payment_method": "cash", "paid_at": clock}
            reply = self.report("print", body)
            self.assertEqual((reply.status, reply.json["printStatus"]), (200, "sent_to_pos"))
        _, (_, kind, data) = self.events()
        self.assertEqual(
            (kind, data["paymentStatus"], data["paymentMethod"]), ("order_updated", "paid", "cash")
        )
        order = self.ask("GET", "/orders/A-1", key=self.platform).json
        self.assertEqual((order["paymentStatus"], order["version"]), ("paid", 2))
        self.assertEqual(order["paidAt"], "2026-11-22T10:00:00.000Z")

    def test_a_word_of_the_tills_own_is_kept_in_the_log(self) -> None:
        reply = self.report("print", {"orderId": "A-1", "status": "re_fired", "reason": "dropped"})
        self.assertEqual((reply.status, reply.json["printStatus"]), (200, "sent_to_pos"))
        ((kind, data, device),) = self.rows(
            "SELECT event_type, event_data, device_id FROM {schema}.pos_sync_logs WHERE seq IS NULL"
        )
        self.assertEqual((kind, device), ("pos_re_fired", "POS_1"))
        self.assertEqual(data, {"orderId": "A-1", "reason": "dropped"})

    def test_a_long_reason_is_cut_and_not_refused(self) -> None:
        self.told("print", status="failed", reason="x" * 5000)
        self.assertEqual(self.value("SELECT length(print_reason) FROM {schema}.pos_orders"), 500)

    def test_an_order_that_is_not_there_is_404(self) -> None:
        for kind in ("received", "accepted", "print"):
            reply = self.report(kind, {"orderId": "B-9", "status": "printed"})
            self.assert_refused(reply, 404, "unknown_order")

    def test_what_is_missing_or_no_word_is_400(self) -> None:
        self.assert_refused(self.report("received", {}), 400, "missing_field")
        self.assert_refused(self.report("print", {"orderId": "A-1"}), 400, "missing_field")
        for status in ("7", "p!", ["printed"]):
            body = {"orderId": "A-1", "status": status}
            self.assert_refused(self.report("print", body), 400, "invalid_field")

    def test_only_tills_may(self) -> None:
        for method, path in (
            ("GET", "/orders/pending"),
            ("POST", "/orders/received"),
            ("POST", "/orders/accepted"),
            ("POST", "/orders/print"),
            ("POST", "/heartbeat"),
        ):
            self.assert_only("tenant, device", method, path)

    def test_a_till_that_goes_away_has_reported(self) -> None:
        self.send_and_leave("POST", "/orders/print", {"orderId": "A-1", "status": "printed"})
        until(lambda: self.delivery()["printedAt"], "the order is printed")

    def test_a_print_on_a_socket_is_the_same(self) -> None:
        till = self.dial(key=self.key)
        till.send({"type": "print", "orderId": "A-1", "status": "printed"})
        until(lambda: self.delivery()["printedAt"], "the order is printed")
        self.assertEqual([each["deviceId"] for each in self.delivery()["terminals"]], ["POS_1"])
        self.assertEqual(self.told("print", status="failed"), "printed")


class DeviceTests(TerminalCase):
    def test_the_terminal_of_the_body_must_be_that_of_the_key(self) -> None:
        body = {"orderId": "A-1", "deviceId": "POS_2"}
        self.assert_refused(self.report("received", body), 403, "device_mismatch")
        self.assert_refused(
            self.report("received", body, self.tenant_key, X_Device_ID="POS_3"),
            403,
            "device_mismatch",
        )
        self.assertEqual(self.delivery()["receivedAt"], None)

    def test_a_terminal_with_a_key_of_its_own_needs_it(self) -> None:
        for path, body in (
            ("/orders/received", {"orderId": "A-1", "device_id": "POS_1"}),
            ("/heartbeat", {"deviceId": "POS_1"}),
        ):
            self.assert_refused(
                self.ask("POST", path, body, self.tenant_key), 403, "device_key_required"
            )

    def test_a_terminal_that_was_never_seen_is_registered(self) -> None:
        body = {"orderId": "A-1", "deviceId": "POS_KÜCHE_1a2b3c4d"}
        self.assertEqual(self.report("received", body, self.tenant_key).status, 200)
        self.assertEqual(self.devices(), ["POS_1", "POS_KÜCHE_1a2b3c4d"])

    def test_a_till_without_a_name_may_report_all_the_same(self) -> None:
        body = {"orderId": "A-1", "deviceId": None, "status": None}
        self.assertEqual(self.report("received", body, self.tenant_key).status, 200)
        self.assertEqual((self.devices(), self.delivery()["terminals"]), (["POS_1"], []))

    def test_what_is_no_name_is_400(self) -> None:
        for name in ("x" * 129, "a\tb", " "):
            body = {"orderId": "A-1", "deviceId": name}
            self.assert_refused(self.report("received", body), 400, "invalid_device")

    def test_too_many_terminals_are_429_but_no_report_is_lost_for_it(self) -> None:
        self.rows(
            "INSERT INTO dinedesk_main.pos_devices (tenant_id, device_id)"
            " SELECT t.id, 'POS_' || n FROM dinedesk_main.tenants AS t, generate_series(2, 1000) AS n"
            f" WHERE t.slug = '{self.slug}'"
        )
        beat = self.ask("POST", "/heartbeat", {"deviceId": "POS_1001"}, self.tenant_key)
        self.assert_refused(beat, 429, "too_many_devices")
        self.assertIn("retry-after", beat.headers)
        body = {"orderId": "A-1", "deviceId": "POS_1001"}
        self.assertEqual(self.report("received", body, self.tenant_key).status, 200)
        self.assertEqual(len(self.devices()), 1000)
        known = self.ask("POST", "/heartbeat", {"deviceId": "POS_7"}, self.tenant_key)
        self.assertEqual(known.status, 200)


class HeartbeatTests(TerminalCase):
    def test_a_heartbeat_says_that_a_terminal_is_there_and_how_it_is(self) -> None:
        body = {
            "tenant": self.slug,
            "device_id": "POS_1",
            "status": "online",
            "pending_acks_count": 2,
            "pending_orders_count": 3,
            "last_print_at": "2026-11-22T10:00:00Z",
            "appVersion": "3.1",
        }
        reply = self.ask("POST", "/heartbeat", body)
        self.assertEqual((reply.status, {*reply.json}), (200, {"success", "timestamp"}))
        kept = (
            "SELECT status, pending_acks, pending_orders, extract(epoch FROM last_print_at)::int, app_version"
            " FROM dinedesk_main.pos_devices WHERE {mine}"
        )
        self.assertEqual(self.rows(kept), [("online", 2, 3, 1795341600, "3.1")])
        self.assertEqual(self.ask("POST", "/heartbeat", {"pendingAcksCount": 0}).status, 200)
        self.assertEqual(self.rows(kept), [("online", 0, 3, 1795341600, "3.1")])

    def test_pos_status_shows_when_it_was_last_heard_connected_or_not(self) -> None:
        (before,) = self.ask("GET", "/pos-status").json["websocket"]["terminals"]
        self.assertIsNone(before["lastSeen"])
        self.ask("POST", "/heartbeat", {"deviceId": "POS_1"})
        (after,) = self.ask("GET", "/pos-status").json["websocket"]["terminals"]
        self.assertIsNotNone(after["lastSeen"])
        self.dial(key=self.key)
        heard = self.ask("POST", "/heartbeat", {"deviceId": "POS_1"}).json["timestamp"]
        until(
            lambda: self.ask("GET", "/pos-status").json["websocket"]["connected"], "it is connected"
        )
        (now,) = self.ask("GET", "/pos-status").json["websocket"]["terminals"]
        self.assertGreaterEqual(now["lastSeen"][:16], heard[:16])

    def test_a_terminal_without_a_name_has_no_heart(self) -> None:
        reply = self.ask("POST", "/heartbeat", {"status": "online"}, self.tenant_key)
        self.assert_refused(reply, 400, "missing_field")
        self.assertEqual(reply.json["field"], "deviceId")

    def test_what_is_no_count_is_400(self) -> None:
        reply = self.ask("POST", "/heartbeat", {"pendingAcksCount": -1})
        self.assert_refused(reply, 400, "invalid_field")


class PendingTests(TerminalCase):
    def pending(self, query: str = "") -> list[str]:
        reply = self.ask("GET", f"/orders/pending{query}")
        self.assertEqual(reply.status, 200, reply.json)
        self.assertEqual(reply.json["count"], len(reply.json["orders"]))
        return [each["id"] for each in reply.json["orders"]]

    def test_an_order_is_as_it_was_published_digit_for_digit(self) -> None:
        body = b'{"orderId":"A-2","totalAmount":12.30,"createdAt":"2026-01-01T00:00:00Z"}'
        self.ask("POST", "/orders", body, self.platform)
        connection = http.client.HTTPSConnection(
            "localhost", self.posd.port, timeout=300, context=self.posd.tls()
        )
        self.addCleanup(connection.close)
        connection.request(
            "GET", f"/api/{self.slug}/orders/pending?limit=1", headers={"X-API-Key": self.key}
        )
        text = connection.getresponse().read().decode()
        self.assertIn('"totalAmount":12.30,', text)
        self.assertIn('"total":12.30,', text)
        (order,) = json.loads(text)["orders"]
        self.assertEqual(
            (order["id"], order["orderId"], order["printStatus"]), ("A-2", "A-2", "pending")
        )

    def test_the_oldest_comes_first(self) -> None:
        self.place("A-0", createdAt="2026-01-01T00:00:00Z")
        self.assertEqual(self.pending(), ["A-0", "A-1"])

    def test_what_is_printed_or_over_is_not_open(self) -> None:
        self.place("A-2", status="cancelled")
        self.place("A-3")
        self.told("print", status="printed")
        self.assertEqual(self.pending(), ["A-3"])
        self.report("print", {"orderId": "A-3", "status": "failed"})
        self.assertEqual(self.pending(), ["A-3"])
        self.ask("PATCH", "/orders/A-3", {"status": "picked_up"}, self.platform)
        self.assertEqual(self.pending(), [])

    def test_a_limit_is_brought_into_its_bounds(self) -> None:
        self.place("A-2", createdAt="2026-01-01T00:00:00Z")
        self.assertEqual(self.pending("?limit=1"), ["A-2"])
        self.assertEqual(self.pending("?limit=-5"), ["A-2"])
        self.assertEqual(len(self.pending("?limit=99999999999999999999")), 2)

    def test_more_than_a_page_is_had_page_by_page(self) -> None:
        """Sixty orders. A till that reads one page gets the oldest fifty, and `hasMore`."""
        events = [
            {"type": "new_order", "data": {"orderId": f"B-{number:02}", "totalAmount": 1}}
            for number in range(59)
        ]
        self.assertEqual(self.ask("POST", "/events", {"events": events}, self.platform).status, 201)
        names = ["A-1", *(event["data"]["orderId"] for event in events)]  # type: ignore[index]
        first = self.ask("GET", "/orders/pending").json
        self.assertEqual([each["id"] for each in first["orders"]], names[:50])
        self.assertEqual((first["count"], first["hasMore"], first["lastEventId"]), (50, True, 60))
        stream = self.value("SELECT stream_id FROM dinedesk_main.pos_heads WHERE {mine}")
        self.assertEqual(first["streamId"], str(stream))
        self.place("C-1")
        self.report("print", {"orderId": "B-49", "status": "printed"})
        second = self.ask("GET", f"/orders/pending?after={first['next']}").json
        self.assertEqual([each["id"] for each in second["orders"]], [*names[51:], "C-1"])
        self.assertEqual((second["hasMore"], second["next"]), (False, None))
        self.assertGreater(second["lastEventId"], 60)
        fetched = Deferred.fromCoroutine(self.fetch())
        self.assertEqual(self.successResultOf(fetched), [*names[:50], *names[51:], "C-1"])

    async def fetch(self) -> list[object]:
        """Return what the reference till fetches after a resync."""

        async def ask(path: str) -> bytes:
            return self.posd.request("GET", path, key=self.key).content

        return [each["id"] async for each in pending_orders(ask, self.slug)]

    def test_a_page_has_a_mebibyte_at_most(self) -> None:
        text = "x" * 50_000
        for number in range(24):
            self.place(f"L-{number:02}", notes=text)
        found: list[str] = []
        query = "?limit=500"
        pages = 0
        while True:
            reply = self.ask("GET", f"/orders/pending{query}")
            self.assertLessEqual(len(reply.content), 1024 * 1024)
            found += [each["id"] for each in reply.json["orders"]]
            pages += 1
            if not reply.json["hasMore"]:
                break
            query = f"?limit=500&after={reply.json['next']}"
        self.assertEqual(found, ["A-1", *(f"L-{number:02}" for number in range(24))])
        self.assertGreater(pages, 2)  # the notes are in each order twice

    def test_an_id_of_any_letters_is_a_place(self) -> None:
        self.place("\N{SLICE OF PIZZA} &after=x:y/%41")
        self.place("Z", createdAt="2099-01-01T00:00:00Z")
        pages, query = [], "?limit=1"
        while True:
            reply = self.ask("GET", f"/orders/pending{query}").json
            pages.append([each["id"] for each in reply["orders"]])
            if not reply["hasMore"]:
                break
            query = f"?limit=1&after={reply['next']}"
        self.assertEqual(pages, [["A-1"], ["\N{SLICE OF PIZZA} &after=x:y/%41"], ["Z"]])

    def test_only_what_has_changed_since_is_asked_for(self) -> None:
        self.assertEqual(self.pending("?since=2026-01-01"), ["A-1"])
        self.rows(
            "UPDATE {schema}.pos_orders SET created_at = '2020-05-05', updated_at = '2020-05-06'"
        )
        for since, found in (
            ("2020-05-05T12:00:00Z", ["A-1"]),
            ("2020-05-05", ["A-1"]),
            ("2020-05-06T00:00:01%2B00:00", []),
            ("2020-05-07", []),
        ):
            self.assertEqual(self.pending(f"?since={since}"), found)

    def test_what_is_no_number_and_no_time_is_400(self) -> None:
        for query, field in (
            ("?limit=many", "limit"),
            ("?since=teatime", "since"),
            ("?since=", "since"),
            ("?after=", "after"),
            ("?after=A-1", "after"),
            ("?after=!", "after"),
            ("?after=%C3%BC", "after"),
            ("?after=MjAyNi05OS0yMlQxODowNTo0MC45MTcwMDAgVw", "after"),
            ("?after=MjAyNi0xMS0yMlQxODowNTo0MC45MTcwMDAg", "after"),
            ("?after=" + "A" * 3000, "after"),
        ):
            reply = self.ask("GET", f"/orders/pending{query}")
            self.assert_refused(reply, 400, "invalid_field")
            self.assertEqual(reply.json["field"], field)


class DeliveryTests(TerminalCase):
    """An order written to a socket is sent. Only a message of a till ends `undelivered`."""

    def sent(self, order_id: str = "A-1") -> None:
        until(lambda: self.delivery(order_id)["pushedAt"], f"{order_id} was sent")

    def test_an_order_that_was_written_to_a_socket_is_sent_and_no_more(self) -> None:
        self.dial(key=self.tenant_key)
        self.place("A-2")
        self.sent("A-2")
        self.sent("A-1")
        order = self.ask("GET", "/orders/A-2", key=self.platform).json
        self.assertEqual(order["printStatus"], "sent_to_pos")
        self.assertEqual((order["delivery"]["receivedAt"], self.undelivered()), (None, 2))

    def test_an_acknowledgement_is_a_receipt(self) -> None:
        till = self.dial(key=self.key, after=0)
        till.send({"type": "ack", "id": 1})
        until(lambda: self.delivery()["receivedAt"], "it was received")
        order = self.ask("GET", "/orders/A-1", key=self.platform).json
        self.assertEqual((order["printStatus"], self.undelivered()), ("sent_to_pos", 0))

    def test_what_tills_say_of_orders_ends_undelivered(self) -> None:
        self.place("A-2")
        self.assertEqual(self.undelivered(), 2)
        self.told("received")
        until(lambda: self.undelivered() == 1, "one is confirmed")
        self.report("print", {"orderId": "A-2", "status": "printed"})
        until(lambda: self.undelivered() == 0, "both are confirmed")

    def test_nobody_waits_for_a_receipt_of_an_order_that_is_over(self) -> None:
        self.place("A-2")
        self.ask("PATCH", "/orders/A-1", {"status": "cancelled"}, self.platform)
        self.report("received", {"orderId": "A-2"})
        until(lambda: self.undelivered() == 1, "all but the cancellation is confirmed")


class HealthTests(RestCase):
    def test_any_key_of_the_tenant_may_ask_how_it_is(self) -> None:
        device = self.shop.key("device", self.slug, "POS_1")
        for key in (self.key, device, self.platform, self.shop.key("admin", None)):
            reply = self.ask("GET", "/health", key=key)
            self.assertEqual(reply.status, 200)
            self.assertEqual({*reply.json}, {"status", "tenant", "timestamp", "version"})
            self.assertEqual((reply.json["status"], reply.json["tenant"]), ("ok", self.slug))

    def test_nobody_else_may(self) -> None:
        self.assert_refused(
            self.ask("GET", "/health", key=self.shop.key("tenant", self.another())),
            401,
            "unauthorized",
        )
        self.assert_refused(self.ask("GET", "/health", X_Tenant_ID="x"), 403, "tenant_mismatch")
        self.assert_refused(
            self.posd.request("GET", "/api/Nobody!/health", key=self.key), 400, "invalid_tenant"
        )

    def test_without_a_database_it_is_degraded(self) -> None:
        nowhere = self.shop.start(dsn="host=/nowhere dbname=posd", wait=False)
        self.addCleanup(nowhere.kill)
        nowhere.wait_listening()
        reply = nowhere.request("GET", f"/api/{self.slug}/health", key=self.key)
        self.assertEqual((reply.status, reply.json["status"]), (503, "degraded"))
        self.assertIn("retry-after", reply.headers)
        without = nowhere.request("GET", f"/api/{self.slug}/health")
        self.assertEqual((without.status, without.json["code"]), (401, "unauthorized"))
