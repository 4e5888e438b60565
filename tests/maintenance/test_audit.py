"""Tests of the audit: it names the faulty rows of each damage, and finds nothing in an undamaged database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from posd.store import audit_ledgers, audit_main, audit_orders, audit_stream
from tests import audit_damages, ledger_damages
from tests.audit_case import AuditCase
from tests.audit_damages import Damage

ALL = (*audit_damages.STREAM, *audit_damages.ORDERS, *audit_damages.MAIN, *ledger_damages.LEDGERS)


class WholeTests(AuditCase):
    def test_an_audit_after_a_busy_day_has_no_findings(self) -> None:
        self.assertEqual(self.audited(), [])


class DamageTests(AuditCase):
    """Damages by a superuser."""

    def check(self, damages: Iterable[Damage]) -> None:
        for each in damages:
            with self.subTest(check=each.check, rows=[*each.rows]):
                named = self.named(*each.statements)
                found = named.pop(each.check, {})
                self.assertEqual(found.keys(), each.rows.keys(), (found, named))
                for row, what in each.rows.items():
                    self.assertRegex(found[row], what)
                self.assertEqual(named.keys(), each.also, (found, named))

    def test_each_damage_to_a_stream_is_found(self) -> None:
        self.check(audit_damages.STREAM)

    def test_each_damage_to_orders_and_reports_is_found(self) -> None:
        self.check(audit_damages.ORDERS)

    def test_each_damage_to_the_main_schema_is_found(self) -> None:
        self.check(audit_damages.MAIN)

    def test_each_damage_to_ledgers_is_found(self) -> None:
        self.check(ledger_damages.LEDGERS)

    def test_each_message_of_a_check_is_caused_by_a_damage(self) -> None:
        modules = (audit_main, audit_stream, audit_orders)
        checks = [check for module in modules for check in module.CHECKS]
        reasons = 0
        for check in (*checks, *audit_ledgers.GIFT_CARDS, *audit_ledgers.LOYALTY):
            tried = {
                what
                for each in ALL
                if _family(each.check) == _family(check.name)
                for what in each.rows.values()
            }
            self.assertNotEqual(tried, set(), check.name)
            for reason in _reasons(check.sql):
                reasons += 1
                with self.subTest(check=check.name, reason=reason):
                    self.assertTrue(any(reason in what for what in tried), reason)
        self.assertGreater(reasons, 90)


def _family(check: str) -> str:
    """Return the name of a check without the ledger, since one text defines the checks of both ledgers."""
    return re.sub(" (gift cards|points)$", "", check)


def _reasons(sql: str) -> Iterator[str]:
    """Yield the longest literal of each message of a check."""
    for piece in re.split(r"\bTHEN\b", sql)[1:]:
        said = re.split(r"\b(?:WHEN|ELSE|END)\b", piece)[0]
        texts = [text.replace("''", "'") for text in re.findall("'((?:[^']|'')*)'", said)]
        longest = max(texts, key=len, default="").strip(" ,")
        if " " in longest:
            yield longest
