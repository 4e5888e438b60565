"""JSON that is deep, huge, ambiguous or invalid: by WebSocket, by REST, by SQL, and back to tills."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

from tests.integration.hostile_case import HostileCase
from tests.integration.peer import TEXT, Answer, Peer, frame

_DEEP: Final = {32: "[" * 31 + "]" * 31, 33: "[" * 32 + "]" * 32}
_NO_JSON: Final = (
    b"",
    b" ",
    b"{",
    b"{'type':'ping'}",
    b'{"type":"ping",}',
    b'{"type":"ping"}{"type":"ping"}',
    b'{"type":"ping"} x',
    b"NaN",
    b'{"type":NaN}',
    b'{"type":Infinity}',
    b'{"type":01}',
    b'{"type":+1}',
    b'{"type":.5}',
    b'{"type":0x1}',
    b'{"type":"\x00"}',
    b'{"type":"a\nb"}',
    b'{"type":"\\x41"}',
    b'{"type":"x","n":1e999999}',
    b'{"type":"x","n":-1e999999999999999999}',
    b'{"type":"x","n":1e-999999}',
    b'{"type":"x","n":' + b"9" * 10_000 + b"}",
    b'{"type":"x","n":0.' + b"9" * 10_000 + b"}",
    b"[" * 10_000,
    b"[" * 10_000 + b"]" * 10_000,
    b'{"a":' * 8_000 + b"1" + b"}" * 8_000,
)


class FromTillsTests(HostileCase):
    """Messages of a till: an error for each, and the connection stays open."""

    def said(self, till: Peer, text: bytes) -> str:
        """Return the code of the error that answers a message."""
        till.send(frame(TEXT, text))
        message = till.message()
        self.assertEqual(message["type"], "error", text[:40])
        if len(text) > 8:
            self.assertNotIn(text[:1000].decode(errors="replace"), str(message))
        return str(message["code"])

    def test_what_is_no_message(self) -> None:
        no_message = (
            *(
                b"null",
                b"1",
                b'"ping"',
                b"[]",
                b"{}",
                b'{"type":null}',
                b'{"type":1}',
                b'{"type":{}}',
            ),
            *(b'{"type":""}', b'{"type":"%b"}' % (b"x" * 101), b'{"type":"a\\nb"}'),
            *(b'{"type":"ping","id":true}', b'{"type":"ping","id":{}}', b'{"TYPE":"ping"}'),
            b'{"type":"x","deep":%b}' % _DEEP[33].encode(),
        )
        wrong = (*no_message, *(each for each in _NO_JSON if each.isascii()))
        # The tenth within a minute would end the connection.
        for start in range(0, len(wrong), 9):
            till = self.till()
            for text in wrong[start : start + 9]:
                self.assertEqual(self.said(till, text), "invalid_message", text[:40])
            self.assert_alive(till)

    def test_numbers_that_are_prints(self) -> None:
        till = self.till()
        for print_of in (
            '"orderId":null',
            '"orderId":""',
            f'"orderId":"{"x" * 256}"',
            '"orderId":["1"]',
            '"orderId":true',
            '"orderId":"1","order_id":"2"',
            '"orderId":1.5',
        ):
            text = f'{{"type":"print","status":"printed",{print_of}}}'
            self.assertEqual(self.said(till, text.encode()), "invalid_message", print_of)

    def test_the_strangest_that_is_a_message_is_kept(self) -> None:
        till = self.till()
        for text in (
            b'{"type":"odd","nul":"a\\u0000b","twice":1,"twice":"%b"}' % self.secret.encode(),
            b'{"type":"odd","deep":%b}' % _DEEP[32].encode(),
            b'{"type":"odd","big":%b,"small":1e-30,"plain":1.50e2}' % (b"9" * 40),
            '{"type":"odd","text":"\N{RIGHT-TO-LEFT OVERRIDE}\\u2028\N{SLICE OF PIZZA}\'; --"}'.encode(),
        ):
            till.send(frame(TEXT, text))
        self.assert_alive(till)
        sql = f"SELECT event_data::text FROM {self.schema}.pos_sync_logs ORDER BY id"
        texts = [text for (text,) in self.wait_for(sql, 4)]
        kept = [json.loads(text, parse_float=Decimal) for text in texts]
        self.assertEqual(kept[0]["nul"], "a\N{REPLACEMENT CHARACTER}b")
        self.assertEqual(kept[0]["twice"], self.secret)
        self.assertEqual((kept[2]["big"], kept[2]["plain"]), (int("9" * 40), Decimal("150")))
        self.assertNotIn("e", texts[2].split('"small"')[1])

    def test_half_an_emoji_is_repaired_and_no_error(self) -> None:
        till = self.till(headers=[("X-Device-ID", "front")])
        self.publish({"orderId": "E-1"}, "new_order")
        self.assertEqual(till.message()["type"], "new_order")
        for text in (
            rb'{"type":"print","orderId":"E-1","status":"failed","reason":"paper \ud83d"}',
            rb'{"type":"nack","id":1,"reason":"\ude00 odd"}',
            rb'{"type":"odd","text":"half \ud83d"}',
        ):
            till.send(frame(TEXT, text))
        self.assert_alive(till)
        for sql, told in (
            (
                f"SELECT print_reason FROM {self.schema}.pos_orders",
                "paper \N{REPLACEMENT CHARACTER}",
            ),
            (f"SELECT reason FROM {self.schema}.pos_nacks", "\N{REPLACEMENT CHARACTER} odd"),
            (
                f"SELECT event_data->>'text' FROM {self.schema}.pos_sync_logs WHERE event_type = 'pos_odd'",
                "half \N{REPLACEMENT CHARACTER}",
            ),
        ):
            self.assertEqual(self.wait_for(sql, 1), [(told,)])


class FromPlatformsTests(HostileCase):
    """Publications by REST: a refusal, or exactly the sent data."""

    def setUp(self) -> None:
        super().setUp()
        self.platform = self.make_key("platform")
        self.path = f"/api/{self.slug}/events"

    def post(self, body: bytes) -> Answer:
        return self.ask("POST", self.path, body, key=self.platform)

    def test_what_is_no_json(self) -> None:
        for body in (
            *_NO_JSON,
            b'{"type":"\xff"}',
            b'{"type":"\xed\xa0\x80"}',
            b"null",
            b"[]",
            b"1",
        ):
            answer = self.post(body)
            code = "number_out_of_range" if "digits" in answer.json["error"] else "invalid_json"
            self.assert_refused(answer, 400, code)
        utf_16 = '{"type":"note","data":{}}'.encode("utf-16")
        self.assert_refused(self.post(utf_16), 400, "invalid_json")

    def test_what_is_no_event(self) -> None:
        for body, status, code in (
            ({}, 422, "invalid_event"),
            ({"type": "note"}, 422, "invalid_event"),
            ({"type": "note", "data": []}, 422, "invalid_event"),
            ({"type": None, "data": {}}, 422, "invalid_event"),
            ({"type": "Note", "data": {}}, 422, "invalid_event"),
            ({"type": "a" * 51, "data": {}}, 422, "invalid_event"),
            ({"type": "note\n", "data": {}}, 422, "invalid_event"),
            ({"type": "note'; --", "data": {}}, 422, "invalid_event"),
            ({"type": "connected", "data": {}}, 422, "invalid_event"),
            ({"type": "pos_note", "data": {}}, 422, "invalid_event"),
            ({"type": "new_order", "data": {"orderId": ""}}, 422, "invalid_event"),
            ({"type": "new_order", "data": {"orderId": "x" * 256}}, 422, "invalid_event"),
            ({"type": "new_order", "data": {"orderId": ["1"]}}, 422, "invalid_event"),
            ({"type": "new_order", "data": {"orderId": True}}, 422, "invalid_event"),
            ({"events": {}}, 400, "invalid_events"),
            ({"events": []}, 400, "invalid_events"),
            ({"events": [{"type": "note", "data": {}}] * 501}, 400, "invalid_events"),
            ({"events": [None]}, 400, "invalid_event"),
            ({"type": "note", "data": {"text": self.secret * 10_000}}, 413, "event_too_large"),
        ):
            self.assert_refused(self.post(json.dumps(body).encode()), status, code)

    def test_one_level_too_deep(self) -> None:
        for depth, status, of_several in ((32, 201, 201), (33, 422, 400)):
            body = b'{"type":"note","data":{"deep":%b}}' % _DEEP[depth].encode()
            self.assertEqual(self.post(body).status, status, depth)
            several = b'{"events":[{"type":"note","data":{"deep":%b}}]}' % _DEEP[depth].encode()
            self.assertEqual(self.post(several).status, of_several, depth)

    def test_an_order_that_was_taken_can_be_updated(self) -> None:
        for depth, code in ((32, 201), (33, 422), (34, 422)):
            deep = "[" * (depth - 1) + "]" * (depth - 1)
            order = f'{{"type":"new_order","data":{{"orderId":"deep-{depth}","deep":{deep}}}}}'
            self.assertEqual(self.post(order.encode()).status, code, depth)
            update = {"orderId": f"deep-{depth}", "status": "ready"}
            body = json.dumps({"type": "order_updated", "data": update})
            self.assertEqual(self.post(body.encode()).status, 201, depth)

    def test_orders_with_names_of_every_kind_are_delivered_as_they_are(self) -> None:
        till = self.till()
        for name in (
            "'; DROP SCHEMA dinedesk_main CASCADE; --",
            '"}],"type":"order_updated",[{"',
            "</script><script>alert(1)</script>",
            "${jndi:ldap://localhost/a} %s %(x)s {0} {name}",
            "\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH JOINER}\u2028\u0085\x7f\x1b[31m",
            "\N{SLICE OF PIZZA}" * 1000,
        ):
            order = {"orderId": name[:100], "customerName": name, "items": [{"name": name}]}
            answer = self.post(json.dumps({"type": "new_order", "data": order}).encode())
            self.assertEqual(answer.status, 201)
            data = till.message()["data"]
            self.assertEqual((data["orderId"], data["customerName"]), (name[:100].strip(), name))
            self.assertEqual(data["items"][0]["name"], name)

    def test_nul_never_gets_through(self) -> None:
        till = self.till()
        self.assertEqual(self.post(b'{"type":"note","data":{"a\\u0000":"\\u0000"}}').status, 201)
        self.assertEqual(till.message()["data"], {"a\ufffd": "\ufffd"})

    def test_half_an_emoji_is_repaired_in_every_body(self) -> None:
        half, whole = rb'"half \ud83d"', "half \N{REPLACEMENT CHARACTER}"
        base = f"/api/{self.slug}"
        order = rb'{"tenant":"%b","event":{"type":"new_order","data":{"orderId":"E-2","notes":%b}}}'
        for path, body, key in (
            ("/broadcast", order % (self.slug.encode(), half), self.platform),
            (f"{base}/reports/daily", rb'{"reportDate":"2026-11-22","notes":%b}' % half, self.key),
            (f"{base}/gift-cards", rb'{"amount":5,"recipientName":%b}' % half, self.platform),
            (
                f"{base}/loyalty/+441632960001/add",
                rb'{"points":5,"reason":%b}' % half,
                self.platform,
            ),
            (
                f"{base}/orders/print",
                rb'{"orderId":"E-2","status":"failed","reason":%b,"deviceId":"front"}' % half,
                self.key,
            ),
        ):
            with self.subTest(path=path):
                answer = self.ask("POST", path, body, key=key)
                self.assertLess(answer.status, 300, answer)
        for sql in (
            "SELECT snapshot->>'notes' FROM {}.pos_orders",
            "SELECT print_reason FROM {}.pos_orders",
            "SELECT notes FROM {}.pos_daily_reports",
            "SELECT recipient_name FROM {}.gift_cards",
            "SELECT reason FROM {}.pos_loyalty_transactions",
        ):
            with self.subTest(sql=sql):
                self.assertEqual(self.wait_for(sql.format(self.schema), 1), [(whole,)])

    def test_of_members_that_repeat_a_name_the_last_counts(self) -> None:
        till = self.till()
        body = b'{"type":"wrong","type":"note","data":{"n":1},"data":{"n":2,"n":3}}'
        self.assertEqual(self.post(body).status, 201)
        self.assertEqual(till.message()["data"], {"n": 3})

    def test_nobody_writes_the_envelope_but_posd(self) -> None:
        till = self.till()
        forged = {"id": 99, "tenant": self.neighbour, "replay": True, "timestamp": "never"}
        body = {"type": "note", "data": {"n": 1}, **forged, "note": "kept"}
        self.assertEqual(self.post(json.dumps(body).encode()).status, 201)
        message = till.message()
        self.assertEqual((message["id"], message["tenant"]), (1, self.slug))
        self.assertNotIn("replay", message)
        self.assertNotEqual(message["timestamp"], "never")

    def test_a_megabyte_of_anything_delays_nobody_for_long(self) -> None:
        neighbour = self.neighbours_till()
        before = self.memory()
        size = 1_000_000
        statuses: set[int] = set()
        dense = (b"[],", b'{"a":1},', b"1.5,", b"1e399,", b"1e9,", b'{"":{"":[]}},')
        parts = (
            *(b'"abcdefghij",', *dense, b'"\\u0000",', b'"\\ud83d",'),
            *(b"1e9        ,", b"1e30,   ", b"{}              ,"),
        )
        wide = b",".join(b'"m%05d":1' % number for number in range(80_000))
        for body in (
            *(
                b'{"type":"note","data":{"a":[' + part * (size // len(part)) + b"0]}}"
                for part in parts
            ),
            b'{"type":"note","data":{' + wide + b"}}",
            b'{"type":"note",' + wide + b"}",
        ):
            for _ in range(3):
                statuses.add(self.post(body).status)
            self.assert_served(neighbour, rounds=1)
        self.assertEqual(statuses - {429}, {400, 413})
        self.assertLess(self.memory() - before, 300)

    def test_a_strangers_megabyte_is_not_even_read(self) -> None:
        body = b'{"tenant":"good","event":[' + b"[]," * 300_000 + b"0]}"
        for key in (None, "wrong-key"):
            answer = self.ask("POST", "/broadcast", body, key=key)
            self.assert_refused(answer, 401, "unauthorized")


class FromDatabasesTests(HostileCase):
    """Publications by SQL: a failed event with a reason, and no delay for others."""

    def assert_fails(self, data: str, reason: str) -> None:
        neighbour = self.neighbours_till()
        before = self.memory()
        self.publish(data)
        self.assert_served(neighbour, rounds=1)
        _, said = self.failure()
        self.assertIn(reason, said)
        self.assertLess(self.memory() - before, 12)
        neighbour.close()

    def test_depths(self) -> None:
        till = self.till()
        self.publish(f'{{"deep":{_DEEP[32]}}}')
        self.assertEqual(till.message()["id"], 1)
        self.assert_fails(f'{{"deep":{_DEEP[33]}}}', "nested more than 32")
        self.assert_fails(f'{{"deep":{"[" * 5000 + "]" * 5000}}}', "nested more than 32")
        self.assertEqual(self.next_note(till), 2)

    def test_as_deep_as_postgresql_itself_can_read(self) -> None:
        """Such a value can be read, but not written again inside a function."""
        till = self.till()
        shallow, deep = 1000, 200_000
        probe = "SELECT ('{\"a\":' || repeat('[', %s) || repeat(']', %s) || '}')::jsonb IS NULL"
        while deep - shallow > 1:
            depth = (shallow + deep) // 2
            try:
                self.shop.query(probe, (depth, depth))
                shallow = depth
            except Exception as error:
                self.assertEqual(getattr(error, "pgcode", None), "54001")
                deep = depth
        self.assert_fails(f'{{"a":{"[" * shallow + "]" * shallow}}}', "values")
        self.assertEqual(self.next_note(till), 1)

    def test_numbers(self) -> None:
        till = self.till()
        """A number with more than forty digits becomes a string, because its sender cannot be asked to
        repeat.
        """
        self.publish('{"n":1e39,"m":-0.00}')
        self.assertEqual(till.message()["data"], {"n": 10**39, "m": 0})
        for number in ("1e40", "9" * 10_000, "1e-16000", "-1.5e300"):
            self.publish(f'{{"n":{number},"m":7}}')
            data: Any = till.message()["data"]
            self.assertEqual((Decimal(data["n"]), data["m"]), (Decimal(number), 7))
            self.assertIsInstance(data["n"], str)
        self.assert_fails('{"n":1e131071}', "131072 are allowed")
        self.assertEqual(self.next_note(till), 6)

    def test_numbers_that_are_a_gigabyte_of_text(self) -> None:
        """Some kilobytes of jsonb. The shop's statement may fail, but posd may not."""
        till, neighbour = self.till(), self.neighbours_till()
        before = self.memory()
        for count in (20, 500):
            self.publish("[" + ",".join(["1e131071"] * count) + "]")
        self.assert_served(neighbour)
        self.assertIn("too large", self.failure()[1])
        self.assertLess(self.memory() - before, 12)
        self.assertEqual(self.next_note(till), 1)

    def test_what_is_no_event(self) -> None:
        till = self.till()
        for kind, data in (
            ("Note", "{}"),
            ("x" * 1_000_000, "{}"),
            ("", "{}"),
            ("connected", "{}"),
            ("note", "null"),
            ("note", "[]"),
            ("note", f'"{self.secret}"'),
            ("new_order", '{"orderId":null}'),
            ("new_order", '{"orderId":{"a":1}}'),
        ):
            self.publish(data, kind)
        self.assertEqual(self.next_note(till), 1)
        failed = f"SELECT count(*) FROM {self.schema}.pos_sync_logs WHERE failure IS NOT NULL"
        self.assertEqual(self.shop.query(failed), [(9,)])

    def test_notifications_that_nobody_sent(self) -> None:
        """Any role that can connect to the database may NOTIFY anything."""
        till, neighbour = self.till(), self.neighbours_till()
        tenant = "SELECT id FROM dinedesk_main.tenants WHERE slug = %s"
        ((number,),) = self.shop.query(tenant, (self.neighbour,))
        for channel, payload in (
            ("posd_events", f"{number} 99999"),
            ("posd_events", f"{number} {'9' * 30}"),
            ("posd_events", f"{number} -1"),
            ("posd_events", "x y z"),
            ("posd_outbox", "x" * 7000),
            ("posd_control", ""),
            ("posd_control", f"tenant {number}"),
            ("posd_control", f"tenant {'9' * 30}"),
            ("posd_control", f"key {'9' * 30}"),
            ("posd_control", "key x"),
            ("posd_control", "superseded x"),
            ("posd_control", "disconnect x"),
            ("posd_control", "superseded 00000000-0000-0000-0000-000000000000"),
        ):
            self.shop.query("SELECT pg_notify(%s, %s)", (channel, payload))
        self.assert_served(neighbour)
        self.assertEqual(self.next_note(till), 1)

    def next_note(self, till: Peer) -> int:
        """Return the position of a note that is published now, after earlier data."""
        self.publish({"mark": True})
        while (message := till.message())["data"] != {"mark": True}:
            pass
        return int(message["id"])
