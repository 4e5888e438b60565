"""`posctl audit`: its output, with the rights of the daemon, and its exit codes."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from posd.cli import audit
from posd.testing.postgres import test_server
from tests.audit_case import after_a_busy_day
from tests.cli_runner import Ran, as_role, execute, posctl

MISSING = "DELETE FROM dinedesk_kitchen.pos_events WHERE seq IN (6, 9, 11)"


class AuditTests(SynchronousTestCase):
    """The tenants `kitchen`, after a busy day, and `grill`."""

    def setUp(self) -> None:
        self.dsn = test_server().fresh_database(test_server().template(after_a_busy_day))
        self.addCleanup(test_server().drop_database, self.dsn)

    def looked_at(self, *arguments: str) -> Ran:
        return posctl("audit", *arguments, dsn=as_role(self.dsn, "posd"))

    def test_a_database_without_faults_has_exit_code_0(self) -> None:
        ran = self.looked_at()
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertRegex(ran.out, r"\A2 tenants, \d+ checks: 0 faulty rows, 0 warnings\n\Z")

    def test_json_has_each_faulty_row_by_tenant_and_check(self) -> None:
        execute(self.dsn, MISSING)
        ran = self.looked_at("--json", "--rows", "2")
        self.assertEqual((ran.code, ran.err), (os.EX_DATAERR, ""))
        assert isinstance(ran.json, dict)
        self.assertFalse(ran.json["ok"])
        gaps = {
            "tenant": "kitchen",
            "check": "gaps",
            "total": 3,
            "rows": [
                {"row": "seq 6", "what": "is not in the log"},
                {"row": "seq 9", "what": "is not in the log"},
            ],
        }
        self.assertIn(gaps, ran.json["faults"])
        self.assertEqual((ran.json["tenants"], ran.json["warnings"]), (2, []))

    def test_the_table_has_the_number_of_further_rows(self) -> None:
        execute(self.dsn, MISSING)
        ran = self.looked_at("--rows", "1")
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertRegex(ran.out, r"(?m)^ fault +kitchen +gaps +seq 6 +is not in the log")
        self.assertRegex(ran.out, r"(?m)^ fault +kitchen +gaps +and 2 more")
        self.assertRegex(ran.out, r"(?m)^2 tenants, \d+ checks: 4 faulty rows, 0 warnings$")

    def test_with_tenant_other_tenants_are_not_checked(self) -> None:
        execute(self.dsn, MISSING)
        self.assertEqual(self.looked_at("--tenant", "grill").code, 0)
        self.assertEqual(self.looked_at("--tenant", "kitchen").code, os.EX_DATAERR)

    def test_a_warning_is_shown_and_is_no_fault(self) -> None:
        execute(
            self.dsn,
            "INSERT INTO dinedesk_main.pos_nacks (tenant_id, seq, device_id) VALUES (1, 99, 'BAR')",
        )
        ran = self.looked_at()
        self.assertEqual(ran.code, 0)
        self.assertRegex(ran.out, r"(?m)^ warning +kitchen +nacks +pos_nacks of BAR, seq 99 ")
        self.assertIn(": 0 faulty rows, 1 warning\n", ran.out)

    def test_a_failed_check_is_a_fault_and_the_others_run(self) -> None:
        execute(self.dsn, "DROP VIEW dinedesk_kitchen.pos_sync_logs")
        execute(self.dsn, "REVOKE SELECT ON dinedesk_kitchen.pos_daily_reports FROM posd")
        execute(self.dsn, MISSING)
        ran = self.looked_at("--json")
        self.assertEqual(ran.code, os.EX_DATAERR)
        assert isinstance(ran.json, dict)
        told = {each["check"]: each["rows"][0]["what"] for each in ran.json["faults"]}
        self.assertRegex(told["statuses"], "the check failed: .* does not exist")
        self.assertRegex(told["reports"], "the check failed: permission denied")
        self.assertEqual(told["gaps"], "is not in the log")

    def test_pruning_and_forgetting_leave_no_faults(self) -> None:
        execute(
            self.dsn,
            "UPDATE dinedesk_kitchen.pos_events SET created_at = '2026-01-01' WHERE seq <= 10",
        )
        prune = "SELECT events, expired FROM dinedesk_main.pos_prune(1, now() - interval '2 hours', '{}', 50)"
        self.assertEqual(execute(self.dsn, prune), [(10, 6)])
        sought = ("--phone", "+447700900123", "--order", "2", "--tenant", "kitchen")
        self.assertEqual(posctl("forget", *sought, "--yes", dsn=as_role(self.dsn, "posd")).code, 0)
        ran = self.looked_at()
        self.assertEqual((ran.code, ran.err), (0, ""), ran.out)

    def test_an_unknown_tenant_is_answered_with_the_nearest(self) -> None:
        ran = self.looked_at("--tenant", "kitchn")
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
        self.assertIn('did you mean "kitchen"?', ran.err)

    def test_cards_telephone_numbers_and_keys_are_not_printed(self) -> None:
        schema = "dinedesk_kitchen"
        execute(self.dsn, f"ALTER TABLE {schema}.gift_cards DISABLE TRIGGER ALL")
        execute(self.dsn, f"DELETE FROM {schema}.gift_cards")
        execute(self.dsn, f"ALTER TABLE {schema}.loyalty_accounts DISABLE TRIGGER ALL")
        execute(self.dsn, f"DELETE FROM {schema}.loyalty_accounts")
        ran = self.looked_at("--json")
        self.assertEqual(ran.code, os.EX_DATAERR)
        for secret in ("GIFT-CARD", "4477009", "a-secret"):
            self.assertNotIn(secret, ran.out)


class UnfinishedTests(SynchronousTestCase):
    def test_a_check_that_times_out_is_skipped_and_reported(self) -> None:
        dsn = test_server().fresh_database(test_server().template(after_a_busy_day))
        self.addCleanup(test_server().drop_database, dsn)
        execute(
            dsn,
            "CREATE OR REPLACE VIEW dinedesk_kitchen.pos_sync_logs AS SELECT e.id, e.seq, e.event_type,"
            " e.event_data, pg_sleep(10)::text AS status, NULL::text AS device_id, "
            " NULL::text AS failure, e.created_at"
            " FROM dinedesk_kitchen.pos_events AS e",
        )
        self.patch(audit, "_STATEMENT_SECONDS", 0.3)
        ran = posctl("audit", dsn=dsn)
        self.assertEqual(ran.code, os.EX_TEMPFAIL)
        self.assertEqual(
            ran.err, "kitchen: the check 'statuses' took longer than 0.3 s and was skipped\n"
        )
