"""Opening (wire protocol §1.1) and the greeting: every way in that a till may take."""

from __future__ import annotations

import asyncio
import hashlib
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from websockets.asyncio.client import connect

from tests.integration.wire import Refused, Till
from tests.integration.wire_case import WireCase, until

_NOW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class CredentialTests(WireCase):
    """The key, in either header, posd's own or brought along."""

    def key_of_column(self, secret: str) -> None:
        """Set the tenant's key as operators are used to."""
        self.rows(
            "UPDATE dinedesk_main.tenants SET pos_api_key = %s WHERE slug = %s", secret, self.slug
        )

    def lets_in(self, **headers: str) -> Till:
        till = Till.dial(self.posd, f"/ws/pos/{self.slug}", headers)
        self.addCleanup(till.hang_up)
        self.assertEqual(till.connected["tenant"], self.slug)
        return till

    def test_x_api_key_lets_a_till_in(self) -> None:
        self.lets_in(**{"X-API-Key": self.key})

    def test_a_bearer_token_lets_a_till_in(self) -> None:
        self.lets_in(Authorization=f"Bearer {self.key}")

    def test_the_scheme_of_a_bearer_token_may_be_written_in_any_case(self) -> None:
        self.lets_in(Authorization=f"bearer {self.key}")

    def test_deployed_tills_send_the_key_in_both_headers(self) -> None:
        self.lets_in(**{"X-API-Key": self.key, "Authorization": f"Bearer {self.key}"})

    def test_an_imported_key_is_whatever_it_is(self) -> None:
        for secret in ("8charact", hashlib.md5(self.slug.encode()).hexdigest(), "~!" * 127 + "z"):
            self.key_of_column(secret)
            self.lets_in(**{"X-API-Key": secret})
            self.lets_in(Authorization=f"Bearer {secret}")

    def test_a_new_key_in_the_tenants_column_ends_the_one_before(self) -> None:
        self.key_of_column("the-first-of-them")
        self.key_of_column("the-second-of-them")
        self.assertEqual(self.refused(key="the-first-of-them").status, 401)
        self.lets_in(**{"X-API-Key": "the-second-of-them"})

    def test_two_keys_of_one_terminal_may_overlap(self) -> None:
        for key in [self.shop.key("device", self.slug, "POS_BAR_1") for _ in "ab"]:
            self.assertEqual(self.dial(key=key).connected["deviceId"], "POS_BAR_1")

    def test_a_key_in_the_url_is_neither_a_credential_nor_an_error(self) -> None:
        self.dial(query={"apiKey": "pos_of_somebody_else"})
        self.dial(query={"apiKey": self.key})
        with self.assertRaises(Refused) as raised:
            Till.dial(self.posd, f"/ws/pos/{self.slug}?apiKey={self.key}")
        self.assertEqual(raised.exception.status, 401)

    def test_neither_keys_nor_query_strings_are_logged(self) -> None:
        self.dial(query={"apiKey": f"{self.key}#url", "last_event_id": 0}).leave()
        self.refused(key=f"{self.key}#wrong")
        self.dial(headers={"Authorization": f"Bearer {self.key}"}).leave()
        gone = f"till gone: tenant={self.slug} "
        until(
            lambda: self.posd.log().count(gone) == 2, "a line for each of the two that were let in"
        )
        log = self.posd.log()
        self.assertNotIn(self.key, log)
        self.assertNotIn("apiKey", log)
        self.assertNotIn("last_event_id", log)


class TerminalTests(WireCase):
    """Which terminal it is that connects."""

    def test_a_till_without_a_name_has_none(self) -> None:
        self.assertIsNone(self.dial().connected["deviceId"])

    def test_x_device_id_names_a_terminal(self) -> None:
        self.assertEqual(self.dial(device="POS_BAR_1").connected["deviceId"], "POS_BAR_1")

    def test_a_name_is_free_utf_8_of_up_to_128_characters(self) -> None:
        for name in ("POS_Kühltheke № 2_1a2b3c4d", "厨房", "x" * 128):
            self.assertEqual(self.dial(device=name).connected["deviceId"], name)

    def test_a_device_key_names_its_terminal(self) -> None:
        key = self.shop.key("device", self.slug, "POS_BAR_1")
        self.assertEqual(self.dial(key=key).connected["deviceId"], "POS_BAR_1")
        agreed = self.dial(key=key, device="POS_BAR_1")
        self.assertEqual(agreed.connected["deviceId"], "POS_BAR_1")

    def test_a_device_key_is_of_no_use_to_another_terminal(self) -> None:
        key = self.shop.key("device", self.slug, "POS_BAR_1")
        refused = self.refused(key=key, device="POS_BAR_2")
        self.assertEqual((refused.status, refused.json["code"]), (403, "device_mismatch"))

    def test_a_terminal_that_has_a_key_of_its_own_needs_it(self) -> None:
        self.dial(device="POS_BAR_1").leave()
        self.shop.key("device", self.slug, "POS_BAR_1")
        # posd learns of it by NOTIFY.
        until(self.is_refused, "the tenant's key is of no use to POS_BAR_1 any more", 5)
        self.dial(device="POS_BAR_2")

    def is_refused(self) -> bool:
        try:
            self.dial(device="POS_BAR_1").leave()
        except Refused as refused:
            return (refused.status, refused.json["code"]) == (403, "device_key_required")
        return False

    def test_a_terminal_that_ever_had_a_key_of_its_own_needs_one(self) -> None:
        self.shop.key("device", self.slug, "POS_BAR_1")
        self.rows(
            "UPDATE dinedesk_main.pos_api_keys SET revoked_at = now() WHERE {mine}"
            " AND device_id = 'POS_BAR_1'"
        )
        refused = self.refused(device="POS_BAR_1")
        self.assertEqual((refused.status, refused.json["code"]), (403, "device_key_required"))


class PositionTests(WireCase):
    """Resuming: by query, by header, with the name of the history or without."""

    def setUp(self) -> None:
        super().setUp()
        self.publish(5)

    def resumes(self, till: Till, position: int) -> None:
        self.assertEqual(till.connected["resumedFrom"], position)
        self.assertIsNone(till.connected["resync"])
        self.assert_ids(till.take(5 - position), position + 1, 5)
        self.assertTrue(till.next_is_pong(1))

    def test_by_query(self) -> None:
        self.resumes(self.dial(after=2), 2)

    def test_by_header(self) -> None:
        self.resumes(self.dial(headers={"Last-Event-ID": "2"}), 2)

    def test_the_header_is_newer_than_a_url_that_is_kept(self) -> None:
        self.resumes(self.dial(after=1, headers={"Last-Event-ID": "3"}), 3)

    def test_with_the_name_of_the_history(self) -> None:
        stream = self.dial().connected["streamId"]
        self.resumes(self.dial(after=2, stream=stream), 2)
        self.resumes(
            self.dial(headers={"Last-Event-ID": "2"}, query={"stream_id": stream.upper()}), 2
        )

    def test_from_the_very_beginning(self) -> None:
        self.resumes(self.dial(after=0), 0)

    def test_with_nothing_missed(self) -> None:
        self.resumes(self.dial(after=5), 5)

    def test_a_name_without_a_position_asks_for_nothing(self) -> None:
        till = self.dial(stream=str(uuid4()))
        self.assertIsNone(till.connected["resumedFrom"])
        self.assertIsNone(till.connected["resync"])
        self.assertTrue(till.next_is_pong(1))


class GreetingTests(WireCase):
    """`connected`, the first message, exactly."""

    def test_it_says_all_that_the_contract_says_in_its_order(self) -> None:
        self.publish(3)
        till = self.dial(device="POS_BAR_1", after=1)
        said = till.connected
        stream = self.value("SELECT stream_id::text FROM dinedesk_main.pos_heads WHERE {mine}")
        self.assertEqual(
            list(said.items()),
            [
                ("type", "connected"),
                ("tenant", self.slug),
                ("message", "Connected to POS WebSocket"),
                ("timestamp", said["timestamp"]),
                ("connectionId", said["connectionId"]),
                ("deviceId", "POS_BAR_1"),
                ("streamId", stream),
                ("lastEventId", 3),
                ("resumedFrom", 1),
                ("resync", None),
                ("heartbeatSeconds", 30),
            ],
        )
        self.assertEqual(str(UUID(said["connectionId"])), said["connectionId"])
        self.assertRegex(said["timestamp"], _NOW)
        age = datetime.now(UTC) - datetime.fromisoformat(said["timestamp"])
        self.assertLess(abs(age), timedelta(seconds=60))

    def test_the_head_is_told_although_there_never_was_an_event(self) -> None:
        said = self.dial().connected
        self.assertEqual((said["lastEventId"], said["resumedFrom"]), (0, None))

    def test_nothing_was_asked_so_nothing_is_resumed(self) -> None:
        self.publish(2)
        for till in (self.dial(), self.dial(device="POS_BAR_1")):
            self.assertEqual(till.connected["lastEventId"], 2)
            self.assertIsNone(till.connected["resumedFrom"])
            self.assertIsNone(till.connected["resync"])

    def test_every_connection_has_an_id_of_its_own(self) -> None:
        ids = {self.dial().connected["connectionId"] for _ in range(3)}
        self.assertEqual(len(ids), 3)

    def test_all_connections_tell_of_one_history(self) -> None:
        streams = {self.dial(after=0).connected["streamId"] for _ in range(3)}
        self.assertEqual(len(streams), 1)


class WholeLibraryTests(WireCase):
    """`websockets` as its users use it, with everything that it does by itself."""

    def test_it_converses_with_posd(self) -> None:
        asyncio.run(self.converse())

    async def converse(self) -> None:
        async with connect(
            f"wss://localhost:{self.posd.port}/ws/pos/{self.slug}",
            ssl=self.posd.tls(),
            additional_headers={"X-API-Key": self.key},
            proxy=None,
            open_timeout=300,
        ) as till:
            self.assertIn('"type":"connected"', str(await till.recv()))
            # It offers permessage-deflate by default; posd does not take it up.
            self.assertEqual(till.protocol.extensions, [])
            self.publish()
            self.assertIn('"id":1,', str(await till.recv()))
            await (await till.ping())
            await till.send('{"type":"ping"}')
            self.assertIn('"type":"pong"', str(await till.recv()))
        self.assertEqual((till.close_code, till.close_reason), (1000, ""))
