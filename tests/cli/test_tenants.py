"""`posctl tenant`, on a real PostgreSQL."""

from __future__ import annotations

import json
import os

from twisted.trial.unittest import SynchronousTestCase

from posd.store import export
from posd.testing.postgres import test_server
from tests.audit_case import after_a_busy_day
from tests.cli_runner import Ran, as_role, execute, migrated_database, posctl

KITCHEN = {
    "id": 1,
    "slug": "kitchen",
    "name": "The Kitchen",
    "schema": "dinedesk_kitchen",
    "currency": "GBP",
    "timezone": "Europe/London",
    "defaultRegion": "GB",
}
BISTRO = {
    "id": 2,
    "slug": "le-bistro",
    "name": "Le Bistro [bold]",
    "schema": "dinedesk_le_bistro",
    "currency": "EUR",
    "timezone": "Europe/Paris",
    "defaultRegion": "FR",
}
ADD_BISTRO = (
    *("tenant", "add", "le-bistro", "--name", "Le Bistro [bold]"),
    *("--currency", "eur", "--timezone", "Europe/Paris"),
)


class AddTests(SynchronousTestCase):
    """There is one shop, and another is added."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def test_programs_get_the_tenant_as_it_is_stored(self) -> None:
        ran = posctl(*ADD_BISTRO, "--json", dsn=self.dsn)
        self.assertEqual((ran.code, ran.json), (0, BISTRO))

    def test_people_are_told_what_to_do_next(self) -> None:
        ran = posctl(*ADD_BISTRO, dsn=self.dsn)
        self.assertIn("posctl key create --kind device --tenant le-bistro", ran.out)

    def test_pounds_and_london_are_the_default(self) -> None:
        ran = posctl("tenant", "add", "grill", "--name", "The Grill", "--json", dsn=self.dsn)
        assert isinstance(ran.json, dict)
        self.assertEqual((ran.json["currency"], ran.json["timezone"]), ("GBP", "Europe/London"))

    def test_the_schema_is_complete_at_once(self) -> None:
        posctl(*ADD_BISTRO, dsn=self.dsn)
        ran = posctl("migrate", dsn=self.dsn)
        self.assertEqual(ran.out, "0 schemas updated, 0 failed\n")

    def test_one_that_exists_is_not_made_again(self) -> None:
        ran = posctl("tenant", "add", "kitchen", "--name", "Another", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_CANTCREAT)
        self.assertEqual(ran.err, "posctl: the tenant 'kitchen' exists already\n")

    def test_before_the_first_migration_the_way_is_shown(self) -> None:
        dsn = test_server().fresh_database()
        posctl("bootstrap", dsn=dsn)
        ran = posctl(*ADD_BISTRO, dsn=dsn)
        self.assertEqual(ran.code, os.EX_CONFIG)
        self.assertRegex(ran.err, r"\Aposctl: .*run `posctl migrate`\n\Z")

    def test_what_cannot_be_a_tenant_is_refused_before_the_database_is_asked(self) -> None:
        for slug, said in (
            ("Kitchen", "small letters"),
            ("kit_chen", "small letters"),
            ("-kitchen", "No such option"),
            ("kitchen-", "small letters"),
            ("k" * 49, "up to 48"),
            ("admin", "reserved"),
        ):
            with self.subTest(slug=slug):
                ran = posctl("tenant", "add", slug, "--name", "N", dsn="host=/nowhere")
                self.assertEqual(ran.code, os.EX_USAGE)
                self.assertIn(said, ran.err)

    def test_a_zone_that_does_not_exist_is_answered_with_one_that_does(self) -> None:
        ran = posctl("tenant", "add", "grill", "--name", "N", "--timezone", "Europe/Pariss")
        self.assertEqual(ran.code, os.EX_USAGE)
        self.assertIn('did you mean "Europe/Paris"?', ran.err)

    def test_a_zone_that_would_be_a_path_is_none(self) -> None:
        for zone in ("/etc/passwd", "../x", "Europe", ""):
            with self.subTest(zone=zone):
                ran = posctl("tenant", "add", "grill", "--name", "N", "--timezone", zone)
                self.assertEqual(ran.code, os.EX_USAGE)

    def test_a_currency_is_one_that_there_is(self) -> None:
        for wrong in ("pound", "XXQ", "XAU"):
            ran = posctl("tenant", "add", "grill", "--name", "N", "--currency", wrong)
            self.assertEqual(ran.code, os.EX_USAGE)
            self.assertIn("such as GBP", ran.err)

    def test_telephone_numbers_are_of_the_country_of_the_time_zone(self) -> None:
        ran = posctl(*ADD_BISTRO, dsn=self.dsn)
        self.assertEqual(ran.err, "")
        self.assertIn("Currency EUR, time zone Europe/Paris, region FR for", ran.out)
        given = ("tenant", "add", "corner", "--name", "Corner", "--region", "ie", "--json")
        shown = posctl(*given, dsn=self.dsn).json
        assert isinstance(shown, dict)
        self.assertEqual(shown["defaultRegion"], "IE")
        for wrong in ("QQ", "GBR", "1", ""):
            ran = posctl("tenant", "add", "x", "--name", "X", "--region", wrong)
            self.assertEqual(ran.code, os.EX_USAGE)
            self.assertIn("such as GB or FR", ran.err)

    def test_a_default_that_does_not_go_with_what_was_given_is_doubted(self) -> None:
        for number, (options, words) in enumerate(
            (
                (("--timezone", "Europe/Paris"), ("currency is GBP", "region is FR")),
                (("--currency", "EUR"), ("time zone is Europe/London", "EUR")),
                (("--region", "FR"), ("currency is GBP", "time zone is Europe/London")),
                (("--timezone", "UTC"), ("has no country", "region is GB")),
                (("--timezone", "Europe/Jersey"), ()),
                ((), ()),
            )
        ):
            ran = posctl("tenant", "add", f"t{number}", "--name", "T", *options, dsn=self.dsn)
            self.assertEqual(ran.code, 0)
            for word in words:
                self.assertIn(word, ran.err)
            if not words:
                self.assertEqual(ran.err, "")


class RegionTests(SynchronousTestCase):
    """A shop in Paris with the region of Great Britain."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        self.addCleanup(test_server().drop_database, self.dsn)
        execute(
            self.dsn,
            "UPDATE dinedesk_main.tenants SET timezone = 'Europe/Paris', currency = 'EUR'",
        )

    def accounts(self, *numbers: str) -> None:
        for number in numbers:
            execute(
                self.dsn,
                "INSERT INTO dinedesk_kitchen.loyalty_accounts (phone) VALUES (%s)",
                number,
            )

    def region(self, *arguments: str) -> Ran:
        return posctl("tenant", "region", "kitchen", *arguments, dsn=self.dsn)

    def stored(self) -> str:
        return str(execute(self.dsn, "SELECT default_region FROM dinedesk_main.tenants")[0][0])

    def test_it_is_shown(self) -> None:
        ran = self.region()
        self.assertEqual((ran.code, ran.out), (0, "The region of kitchen is GB.\n"))
        self.assertRegex(posctl("tenant", "list", dsn=self.dsn).out, r"Europe/Paris +GB +yes")

    def test_it_is_changed_where_no_customer_loses_anything(self) -> None:
        self.accounts("+447700900123", "+33612345678")
        ran = self.region("fr")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertIn("was changed from GB to FR", ran.out)
        self.assertEqual(self.stored(), "FR")

    def test_accounts_that_would_be_lost_are_named_and_nothing_is_changed(self) -> None:
        self.accounts("+44612345678", "+33612345678", "+44687654321", "+447700900123")
        ran = self.region("FR")
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertRegex(ran.out, r"\+44612345678 +\+33612345678 +also has an account")
        self.assertRegex(ran.out, r"\+44687654321 +\+33687654321 +–")
        self.assertNotIn("+447700900123", ran.out)
        self.assertEqual(
            ran.err,
            "posctl: customers would lose access to 2 accounts, so nothing was changed;"
            " --keep-accounts changes the region nevertheless\n",
        )
        self.assertEqual(self.stored(), "GB")
        told = self.region("FR", "--json")
        assert isinstance(told.json, dict)
        self.assertEqual(told.json["defaultRegion"], "GB")
        self.assertEqual([each["merges"] for each in told.json["accounts"]], [True, False])

    def test_with_keep_accounts_the_region_changes_and_no_account_does(self) -> None:
        self.accounts("+44612345678", "+33612345678")
        ran = self.region("FR", "--keep-accounts")
        self.assertEqual(ran.code, 0, ran.err)
        self.assertEqual(self.stored(), "FR")
        rows = execute(self.dsn, "SELECT phone FROM dinedesk_kitchen.loyalty_accounts ORDER BY 1")
        self.assertEqual(rows, [("+33612345678",), ("+44612345678",)])

    def test_each_change_is_recorded_however_it_is_made(self) -> None:
        self.region("FR")
        posctl("tenant", "disable", "kitchen", dsn=self.dsn)
        execute(self.dsn, "UPDATE dinedesk_main.tenants SET name = 'Renamed', currency = 'CHF'")
        rows = execute(
            self.dsn,
            "SELECT setting, before, after, changed_by FROM dinedesk_main.pos_tenant_changes"
            " WHERE changed_at > (SELECT created_at FROM dinedesk_main.tenants) ORDER BY id OFFSET 2",
        )
        self.assertEqual(
            rows,
            [
                ("default_region", "GB", "FR", "postgres"),
                ("is_active", "true", "false", "postgres"),
                ("currency", "EUR", "CHF", "postgres"),
            ],
        )

    def test_a_table_of_the_shops_own_is_not_looked_into(self) -> None:
        execute(self.dsn, "ALTER TABLE dinedesk_kitchen.loyalty_accounts OWNER TO postgres")
        self.accounts("+44612345678")
        self.assertEqual(self.region("FR").code, 0)

    def test_the_doctor_tells_of_a_shop_whose_numbers_are_of_another_country(self) -> None:
        told = posctl("doctor", "--json", dsn=self.dsn).json
        assert isinstance(told, dict)
        (line,) = (each for each in told["lines"] if each["part"] == "region")
        self.assertIn("posctl tenant region kitchen FR", line["remedy"])
        self.region("FR")
        told = posctl("doctor", "--json", dsn=self.dsn).json
        assert isinstance(told, dict)
        self.assertEqual([each for each in told["lines"] if each["part"] == "region"], [])

    def test_an_unknown_tenant_is_refused(self) -> None:
        ran = posctl("tenant", "region", "kitchem", "FR", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertIn('did you mean "kitchen"?', ran.err)


class ListTests(SynchronousTestCase):
    """There are two shops."""

    def setUp(self) -> None:
        self.dsn = migrated_database()
        posctl(*ADD_BISTRO, dsn=self.dsn)

    def test_programs_get_every_tenant(self) -> None:
        self.assertEqual(
            posctl("tenant", "list", "--json", dsn=self.dsn).json,
            [KITCHEN | {"active": True}, BISTRO | {"active": True}],
        )

    def test_people_get_a_table_and_names_are_no_markup(self) -> None:
        ran = posctl("tenant", "list", dsn=self.dsn)
        self.assertRegex(
            ran.out, r"(?m)^ *le-bistro +Le Bistro \[bold\] +dinedesk_le_bistro .* yes"
        )

    def test_a_name_cannot_steer_the_terminal(self) -> None:
        execute(self.dsn, "UPDATE dinedesk_main.tenants SET name = E'\\x1b[2Jgone' WHERE id = 1")
        self.assertNotIn("\x1b", posctl("tenant", "list", dsn=self.dsn).out)

    def test_the_daemons_own_role_is_enough(self) -> None:
        self.assertEqual(posctl("tenant", "list", dsn=as_role(self.dsn, "posd")).code, 0)


class DisableTests(SynchronousTestCase):
    """A shop is closed."""

    def setUp(self) -> None:
        self.dsn = migrated_database()

    def test_a_disabled_tenant_stays_in_the_list(self) -> None:
        ran = posctl("tenant", "disable", "kitchen", "--json", dsn=self.dsn)
        self.assertEqual((ran.code, ran.json), (0, {"tenant": "kitchen", "active": False}))
        self.assertEqual(
            posctl("tenant", "list", "--json", dsn=self.dsn).json, [KITCHEN | {"active": False}]
        )

    def test_and_can_be_enabled_again(self) -> None:
        posctl("tenant", "disable", "kitchen", dsn=self.dsn)
        ran = posctl("tenant", "enable", "kitchen", dsn=self.dsn)
        self.assertEqual((ran.code, ran.out), (0, "Tenant kitchen is enabled.\n"))

    def test_an_unknown_one_is_answered_with_the_nearest(self) -> None:
        ran = posctl("tenant", "disable", "kitchn", dsn=self.dsn)
        self.assertEqual(ran.code, os.EX_DATAERR)
        self.assertEqual(
            ran.err, "posctl: there is no tenant 'kitchn': did you mean \"kitchen\"?\n"
        )

    def test_the_daemons_own_role_may_not(self) -> None:
        ran = posctl("tenant", "disable", "kitchen", dsn=as_role(self.dsn, "posd"))
        self.assertEqual(ran.code, os.EX_NOPERM)


class ExportTests(SynchronousTestCase):
    """The rows that `pg_dump` of a shop's schema does not write."""

    def test_all_that_the_common_tables_have_of_a_shop_is_written_and_of_no_other(self) -> None:
        self.patch(export, "BATCH", 2)
        dsn = test_server().fresh_database(test_server().template(after_a_busy_day))
        self.addCleanup(test_server().drop_database, dsn)
        ran = posctl("tenant", "export", "kitchen", dsn=as_role(dsn, "posd"))
        self.assertEqual((ran.code, ran.err), (0, ""))
        lines = [json.loads(line) for line in ran.out.splitlines()]
        for table in export.TABLES:
            stored = execute(
                dsn, f"SELECT row_to_json(t) FROM dinedesk_main.{table} AS t WHERE tenant_id = 1"
            )
            written = [line["row"] for line in lines if line["table"] == table]
            self.assertNotEqual(written, [])
            self.assertCountEqual(map(str, written), [str(row) for (row,) in stored])
        self.assertEqual({line["row"]["tenant_id"] for line in lines}, {1})

    def test_an_unknown_tenant_is_answered_with_the_nearest(self) -> None:
        ran = posctl("tenant", "export", "kitchn", dsn=migrated_database())
        self.assertEqual((ran.code, ran.out), (os.EX_DATAERR, ""))
        self.assertIn('did you mean "kitchen"?', ran.err)
