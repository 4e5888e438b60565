"""`posctl status`, on a real PostgreSQL."""

from __future__ import annotations

import os
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.cli_runner import as_role, execute, migrated_database, posctl

NODE = """
    INSERT INTO dinedesk_main.pos_nodes (node_id, lease_until)
    VALUES ('00000000-0000-0000-0000-00000000000%s', now() + %s::interval)
"""
CONNECTION = """
    INSERT INTO dinedesk_main.pos_connections
        (connection_id, node_id, tenant_id, device_id, connected_at, last_seen_at, sent_seq)
    VALUES (gen_random_uuid(), '00000000-0000-0000-0000-00000000000%s', 1, %s,
            '2026-11-22T10:00Z', '2026-11-22T10:05Z', 41)
"""
EVENT = """
    INSERT INTO dinedesk_main.pos_unsequenced (tenant_id, event_type, event_data, failure, created_at)
    VALUES (1, 'new_order', '{}', %s, now() - %s::interval)
"""
HEAD = "UPDATE dinedesk_main.pos_heads SET last_seq = 42, sent_seq = 42, received_seq = 39"


class StatusTests(SynchronousTestCase):
    """The tenant `kitchen` with a till FRONT, which has acknowledged up to 40 of 42 events."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        execute(self.dsn, HEAD)
        posctl(
            *("key", "create", "--kind", "device", "--tenant", "kitchen", "--device", "FRONT"),
            dsn=self.dsn,
        )
        execute(self.dsn, "UPDATE dinedesk_main.pos_cursors SET acked_seq = 40")
        execute(self.dsn, "UPDATE dinedesk_main.pos_devices SET first_acked_at = now()")

    def status(self) -> dict[str, Any]:
        ran = posctl("status", "--tenant", "kitchen", "--json", dsn=as_role(self.dsn, "posd"))
        self.assertEqual((ran.code, ran.err), (0, ""))
        assert isinstance(ran.json, dict)
        (kitchen,) = ran.json["tenants"]
        assert isinstance(kitchen, dict)
        return kitchen

    def test_json_has_all_values(self) -> None:
        execute(self.dsn, NODE, 1, "10 s")
        execute(self.dsn, CONNECTION, 1, "FRONT")
        kitchen = self.status()
        self.assertRegex(kitchen.pop("streamId"), r"\A[0-9a-f-]{36}\Z")
        self.assertEqual(
            kitchen,
            {
                "tenant": "kitchen",
                "active": True,
                "connected": 1,
                "lastEventId": 42,
                "undelivered": 3,
                "failed24h": 0,
                "waiting": 0,
                "waitingSince": None,
                "trouble": None,
                "terminals": [
                    {
                        "deviceId": "FRONT",
                        "connectedSince": "2026-11-22T10:00:00.000Z",
                        "lastSeen": "2026-11-22T10:05:00.000Z",
                        "lastSentId": 41,
                        "lastAckId": 40,
                        "behind": 2,
                        "legacy": False,
                    }
                ],
            },
        )

    def test_a_disconnected_till_is_listed_with_the_events_it_is_behind(self) -> None:
        (terminal,) = self.status()["terminals"]
        self.assertEqual((terminal["connectedSince"], terminal["behind"]), (None, 2))

    def test_terminals_of_every_node_count_and_those_of_a_dead_one_do_not(self) -> None:
        for node, lease in ((1, "10 s"), (2, "10 s"), (3, "-1 s")):
            execute(self.dsn, NODE, node, lease)
            execute(self.dsn, CONNECTION, node, None)
        kitchen = self.status()
        self.assertEqual(kitchen["connected"], 2)
        self.assertEqual([t["deviceId"] for t in kitchen["terminals"]], [None, None, "FRONT"])

    def test_a_device_that_is_being_superseded_is_there_once(self) -> None:
        execute(self.dsn, NODE, 1, "10 s")
        execute(self.dsn, CONNECTION, 1, "FRONT")
        execute(self.dsn, CONNECTION, 1, "FRONT")
        self.assertEqual(len(self.status()["terminals"]), 1)

    def test_a_terminal_that_never_acknowledged_is_not_behind(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.pos_devices SET first_acked_at = NULL")
        (terminal,) = self.status()["terminals"]
        self.assertEqual((terminal["legacy"], terminal["behind"]), (True, None))

    def test_failures_of_the_last_day_count(self) -> None:
        for failure, age in (("too large", "1 h"), ("too large", "25 h"), (None, "1 h")):
            execute(self.dsn, EVENT, failure, age)
        execute(
            self.dsn,
            "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id)"
            " VALUES (1, 7, 'A'), (1, 7, 'B')",
        )
        self.assertEqual(self.status()["failed24h"], 2)

    def test_what_is_not_numbered_yet_waits(self) -> None:
        execute(self.dsn, "SELECT dinedesk_main.pos_publish('kitchen', 'notice', '{}')")
        kitchen = self.status()
        self.assertEqual(kitchen["waiting"], 1)
        self.assertRegex(kitchen["waitingSince"], r"\A20.*Z\Z")

    def test_a_tenant_whose_schema_does_not_fit_is_told_of(self) -> None:
        execute(
            self.dsn,
            "DELETE FROM dinedesk_main.schema_versions"
            " WHERE schema_name = 'dinedesk_kitchen' AND file = 'tenant/002_shop.sql'",
        )
        ran = posctl("status", dsn=self.dsn)
        self.assertEqual(ran.code, 0)
        self.assertRegex(ran.err, r"\Akitchen is not served: .*posctl migrate`\n\Z")

    def test_people_get_all_tenants_in_a_table(self) -> None:
        posctl("tenant", "add", "bistro", "--name", "The Bistro", dsn=self.dsn)
        posctl("tenant", "disable", "bistro", dsn=self.dsn)
        ran = posctl("status", dsn=self.dsn)
        self.assertRegex(ran.out, r"(?m)^ bistro \(disabled\) +0 +0 +0 +0 +0 +– *$")
        self.assertRegex(ran.out, r"(?m)^ kitchen +0 +42 +3 +0 +0 +– *$")

    def test_with_tenant_the_terminals_are_listed(self) -> None:
        ran = posctl("status", "--tenant", "kitchen", dsn=self.dsn)
        self.assertRegex(ran.out, r"(?m)^ FRONT +– +– +– +40 +2 *$")

    def test_an_unknown_tenant_is_answered_with_the_nearest(self) -> None:
        ran = posctl("status", "--tenant", "kitchn", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
        self.assertIn('did you mean "kitchen"?', ran.err)

    def test_the_doorman_is_shown(self) -> None:
        ran = posctl("status", dsn=self.dsn)
        self.assertIn("There is no doorman", ran.out)
        self.assertIsNone(self.doorman())
        node = "7d1b4c1e-6f5e-4f0e-8b5a-2f1f6f3c9a10"
        execute(self.dsn, "SELECT dinedesk_main.pos_claim_lease(%s, 'one.example')", node)
        ran = posctl("status", dsn=self.dsn)
        self.assertRegex(ran.out, r"(?m)^doorman: one\.example, since \d{4}-\d\d-\d\d \d\d:\d\d$")
        told = self.doorman()
        assert told is not None
        self.assertEqual((told["nodeId"], told["host"]), (node, "one.example"))

    def doorman(self) -> dict[str, Any] | None:
        ran = posctl("status", "--json", dsn=as_role(self.dsn, "posd"))
        assert isinstance(ran.json, dict)
        told = ran.json["doorman"]
        assert told is None or isinstance(told, dict)
        return told
