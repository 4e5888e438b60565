"""`posctl doctor` and `posctl audit` beside a running posd, with TLS and a till."""

from __future__ import annotations

from posd import __version__
from tests.cli_runner import as_role, posctl
from tests.integration.wire_case import WireCase, until

QUICK = ("fsync", "full_page_writes", "synchronous_commit")
"""Settings for speed of a test server, which no other server should have."""


class LiveTests(WireCase):
    def test_of_an_installation_that_works_nothing_is_at_fault(self) -> None:
        alive = "SELECT 1 FROM dinedesk_main.pos_nodes WHERE lease_until > now()"
        until(lambda: bool(self.rows(alive)), "posd has written down that it is alive")
        path = self.shop.folder / f"posd-{self.posd.port}.toml"
        ran = posctl("--config", path, "doctor", "--json")
        assert isinstance(ran.json, dict)
        lines = ran.json["lines"]
        faults = [line["what"] for line in lines if line["state"] == "fault"]
        self.assertEqual([each for each in faults if not each.startswith(QUICK)], [])
        told = {line["part"]: line["what"] for line in lines}
        self.assertEqual(told["listener https"], f"posd {__version__} answers that it is ready")
        self.assertIn("running daemons: 1", told["outbox"])

    def test_an_audit_finds_nothing_and_disturbs_no_till(self) -> None:
        self.key = self.shop.key("device", self.slug, "POS_1")
        till = self.dial()
        self.publish(2)
        till.take(2)
        till.send({"type": "ack", "id": 1})
        self.reaches("POS_1", 1)
        dsn = as_role(self.shop.dsn, "posd")
        ran = posctl("audit", "--tenant", self.slug, "--json", dsn=dsn)
        self.assertEqual((ran.code, ran.err), (0, ""), ran.out)
        self.publish(1, first=3)
        self.assert_ids(till.take(1), 3, 3)
