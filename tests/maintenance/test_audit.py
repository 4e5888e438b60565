"""The audit: whatever is damaged, the rows at fault are named, and nothing is in a database that is whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from posd.store import audit_ledgers, audit_main, audit_orders, audit_stream
from tests import audit_damages, ledger_damages
from tests.audit_case import AuditCase
from tests.audit_damages import Damage

ALL = (*audit_damages.STREAM, *audit_damages.ORDERS, *audit_damages.MAIN, *ledger_damages.LEDGERS)


class WholeTests(AuditCase):
    def test_nothing_is_wrong_after_a_busy_day(self) -> None:
        self.assertEqual(self.audited(), [])


class DamageTests(AuditCase):
    """Somebody with a superuser's rights was there."""

    def check(self, damages: Iterable[Damage]) -> None:
        for each in damages:
            with self.subTest(check=each.check, rows=[*each.rows]):
                named = self.named(*each.statements)
                found = named.pop(each.check, {})
                self.assertEqual(found.keys(), each.rows.keys(), (found, named))
                for row, what in each.rows.items():
                    self.assertRegex(found[row], what)
                self.assertEqual(named.keys(), each.also, (found, named))

    def test_of_a_stream_each_damage_is_found(self) -> None:
        self.check(audit_damages.STREAM)

    def test_of_orders_and_reports_each_damage_is_found(self) -> None:
        self.check(audit_damages.ORDERS)

    def test_of_what_all_have_in_common_each_damage_is_found(self) -> None:
        self.check(audit_damages.MAIN)

    def test_of_ledgers_each_damage_is_found(self) -> None:
        self.check(ledger_damages.LEDGERS)

    def test_every_way_in_which_a_check_finds_something_is_tried(self) -> None:
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
    """The checks of both ledgers are made from one text."""
    return re.sub(" (gift cards|points)$", "", check)


def _reasons(sql: str) -> Iterator[str]:
    """The longest piece of text of each thing that a check can say."""
    for piece in re.split(r"\bTHEN\b", sql)[1:]:
        said = re.split(r"\b(?:WHEN|ELSE|END)\b", piece)[0]
        texts = [text.replace("''", "'") for text in re.findall("'((?:[^']|'')*)'", said)]
        longest = max(texts, key=len, default="").strip(" ,")
        if " " in longest:
            yield longest
