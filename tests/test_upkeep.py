"""After pruning, erasing and replaying in a busy shop, an audit finds no fault."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.audit_case import PHONE, after_a_busy_day
from tests.cli_runner import execute, posctl

OLD = """
    UPDATE dinedesk_kitchen.pos_events SET created_at = now() - interval '40 days' WHERE seq <= %s
"""


class UpkeepTests(SynchronousTestCase):
    def setUp(self) -> None:
        server = test_server()
        self.dsn = server.fresh_database(server.template(after_a_busy_day))
        self.addCleanup(server.drop_database, self.dsn)

    def run_posctl(self, *arguments: str) -> str:
        ran = posctl(*arguments, dsn=self.dsn)
        self.assertEqual((ran.code, ran.err), (0, ""), arguments)
        return ran.out

    def test_whatever_operators_have_done(self) -> None:
        self.run_posctl("audit")
        for seq in (2, 6):
            execute(self.dsn, OLD, seq)
            self.run_posctl("prune")
            self.run_posctl("audit")
        self.run_posctl("forget", "--phone", PHONE, "--order", "3", "--tenant", "kitchen", "--yes")
        self.run_posctl("audit")
        execute(self.dsn, "UPDATE dinedesk_main.pos_cursors SET acked_seq = 8")
        self.run_posctl(
            *("replay", "--tenant", "kitchen", "--device", "FRONT", "--from", "7", "--yes")
        )
        self.run_posctl("audit")
        execute(self.dsn, OLD, 1000)
        execute(
            self.dsn,
            "UPDATE dinedesk_kitchen.pos_orders SET status = 'completed', created_at = 'epoch',"
            " snapshot = jsonb_set(snapshot::jsonb, '{status}', '\"completed\"')::json,"
            " updated_at = now() - interval '40 days'",
        )
        self.run_posctl("prune")
        self.assertEqual(execute(self.dsn, "SELECT * FROM dinedesk_kitchen.pos_orders"), [])
        self.run_posctl("audit")
