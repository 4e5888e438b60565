"""Confidential data is not in a log, a metric, an error or a file of PostgreSQL."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import ExitStack, closing
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.testing.postgres import test_server
from tests.cli_runner import posctl
from tests.integration.canaries import Canaries
from tests.integration.harness import Shop
from tests.integration.secrets_drive import CARD, EMAIL, PHONE, Asked, Drive
from tests.integration.shared import shared
from tests.integration.wire_case import until

FORMATS: Final = ("json", "journal", "text")
_MORE: Final = "[limits]\nfailed_auth_per_minute = 100000\n"

_PUBLISH: Final = ("publish", "--tenant", "kitchen", "--data", "-", "--type")

_SPOIL: Final = """
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'nobody wants %', NEW USING DETAIL = NEW::text, HINT = NEW::text;
    END $$;
    GRANT EXECUTE ON FUNCTION public.refuse() TO PUBLIC;
"""
_REFUSING: Final = """
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""
_IMPOSSIBLE: Final = "ALTER TABLE {table} ADD CONSTRAINT impossible CHECK (false) NOT VALID"
_MENDED: Final = "DROP TRIGGER refuse ON {table}"


class Scene:
    """A posd after all kinds of requests, and then with a database that refuses everything."""

    def __init__(self, stack: ExitStack) -> None:
        # One's own, since its log is looked at; the daemon comes as the role that it has in a shop.
        self.server = test_server().another()
        stack.callback(self.server.stop)
        self.shop = Shop.open(["kitchen", "grill"], server=self.server)
        stack.callback(self.shop.close)
        (self.shop.folder / "conf.d").mkdir()
        self.configure("json")
        self.dsn = str(make_dsn(self.shop.dsn, user="posd"))
        posd = self.shop.start(_MORE, dsn=self.dsn)
        self.drive = Drive(self.shop, posd)
        self.drive.everything()
        self.metrics = self.scrape()
        self.well = len(self.drive.asked)
        self.spoil()

    def configure(self, format_name: str) -> None:
        path = self.shop.folder / "conf.d" / "logging.toml"
        path.write_text(f'[logging]\nformat = "{format_name}"\nlevel = "debug"\n')

    def spoil(self) -> None:
        """Let every table refuse writes, and send everything again, in each log format."""
        tables = [
            table
            for (table,) in self.shop.query(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname IN"
                " ('gift_cards', 'loyalty_accounts', 'idempotency_keys', 'pos_outbox',"
                " 'pos_devices', 'pos_cursors', 'tenants', 'pos_api_keys', 'pos_events',"
                " 'pos_unsequenced', 'pos_nacks', 'pos_orders', 'pos_order_terminals')"
                " OR relkind = 'r' AND relnamespace = 'dinedesk_kitchen'::regnamespace"
                " AND relname LIKE 'pos\\_%'"
            )
        ]
        self.shop.query(_SPOIL)
        for format_name in FORMATS:
            self.configure(format_name)
            posd, before = self.drive.posd, self.drive.posd.log().count("reloaded")
            posd.process.send_signal(signal.SIGHUP)
            until(lambda: posd.log().count("reloaded") > before, "reloaded")  # noqa: B023
            statement = _IMPOSSIBLE if format_name == "journal" else _REFUSING
            for table in tables:
                if format_name == "text":
                    self.shop.query(f"ALTER TABLE {table} DROP CONSTRAINT impossible")
                self.shop.query(statement.format(table=table))
            self.drive.prepare()
            for operation in self.drive.operations:
                self.drive.with_the_right_body(operation)
            self.drive.tills()
            if format_name == "json":
                for table in tables:
                    self.shop.query(_MENDED.format(table=table))

    def scrape(self) -> str:
        answer = self.drive.posd.request("GET", "/metrics", key=self.drive.keys["admin"])
        assert answer.status == 200, answer
        return answer.content.decode()

    @property
    def canaries(self) -> Canaries:
        canaries = Canaries()
        canaries.add(self.drive.canaries)
        return canaries


@shared
def scene(stack: ExitStack) -> Scene:
    return Scene(stack)


class SecretsTests(SynchronousTestCase):
    """After all requests, no confidential data is found."""

    def setUp(self) -> None:
        self.scene = scene()
        self.drive, self.canaries = self.scene.drive, self.scene.canaries

    maxDiff = None

    def assert_silent(self, text: str, where: str) -> None:
        self.assertEqual(self.canaries.found(text), {}, where)

    def test_the_log_of_posd(self) -> None:
        self.assert_silent(self.drive.posd.log(), "the log")

    def test_metrics(self) -> None:
        self.assertIn("posd_", self.scene.metrics)
        self.assert_silent(self.scene.metrics + self.scene.scrape(), "/metrics")

    def test_errors(self) -> None:
        errors = [each for each in self.drive.asked if each.answer.status >= 400]
        self.assertGreater({each.answer.status for each in errors}, {400, 401, 403, 404, 405, 409})
        told = {repr((each.answer.headers, error_body(each))) for each in errors}
        self.assert_silent("\n".join(told), "the errors")

    def test_answers_have_no_key_but_a_new_one(self) -> None:
        answers = {each.answer.body for each in self.drive.asked if each.answer.status < 400}
        keys = Canaries()
        keys.add(canary for canary in self.drive.canaries if canary.is_key)
        text = "\n".join(body.decode() for body in answers)
        made = re.compile(r'(?<="key":")pos_[0-9a-f]{64}')
        self.assertGreater(len(made.findall(text)), 0)
        self.assertEqual(keys.found(made.sub("", text)), {})

    def test_the_log_of_postgresql(self) -> None:
        log = self.scene.server.log()
        self.assert_silent(log, "PostgreSQL's log")

    def test_what_was_refused_was_noticed(self) -> None:
        """The other tests search something."""
        refused = [each.answer.status for each in self.drive.asked[self.scene.well :]]
        self.assertGreater(refused.count(500), 20)
        log = self.drive.posd.log()
        for sign in (
            "Traceback",
            "SQLSTATE P0001",
            "impossible",
            '"level":"error"',
            "<3>",
            "#error]",
        ):
            self.assertIn(sign, log)

    def test_what_posctl_prints(self) -> None:
        # A fault for `posctl audit` to report.
        self.scene.shop.query(
            "SET session_replication_role = replica;"
            " DELETE FROM dinedesk_kitchen.pos_gift_card_transactions WHERE seq = 1;"
            " DELETE FROM dinedesk_kitchen.loyalty_accounts;"
            " UPDATE dinedesk_kitchen.pos_orders SET snapshot = '{}', version = 99"
        )
        # A failed order is named by its id, and by nothing else.
        order = f'{{"orderId":"W-78","voucherCode":"{CARD.text}","customerPhone":"{PHONE.text}"}}'
        said = ""
        for arguments, stdin in (
            (("key", "list"), None),
            (("key", "list", "--tenant", "kitchen", "--json"), None),
            (("tenant", "list", "--json"), None),
            (("status",), None),
            (("status", "--tenant", "kitchen", "--json"), None),
            (("audit",), None),
            (("audit", "--json"), None),
            (("doctor",), None),
            (("forget", "--phone", PHONE.text, "--email", EMAIL.text, "--dry-run"), None),
            ((*_PUBLISH, "new_order"), order[:-1]),
            ((*_PUBLISH, CARD.text), order),
        ):
            ran = posctl(*arguments, dsn=self.scene.dsn, stdin=stdin)
            said += ran.out + ran.err
        # The database refuses everything, which posctl does not expect.
        command = (sys.executable, "-m", "posd.cli", "--dsn", self.scene.dsn)
        ended = subprocess.run(
            [*command, *_PUBLISH, "new_order"],
            input=order,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said += ended.stdout + ended.stderr
        for sign in ("StatementFailed", "follows nothing", "Nothing was erased.", "W-78"):
            self.assertIn(sign, said)
        self.assert_silent(said, "what posctl prints")

    def test_who_watches_postgresql_sees_no_statement_of_posds(self) -> None:
        """Only superusers, who could read the tables too, and pg_read_all_stats see its statements."""
        self.scene.shop.query("CREATE ROLE onlooker LOGIN; GRANT posd_publisher TO onlooker")
        watching = make_dsn(self.scene.shop.dsn, user="onlooker")
        with closing(psycopg2.connect(watching)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT query FROM pg_stat_activity WHERE usename = 'posd'")
            self.assertEqual(cursor.fetchall(), [("<insufficient privilege>",)])


def error_body(asked: Asked) -> object:
    """Return an error, without the order that `version_mismatch` shows to its owner."""
    body = dict(asked.answer.json)
    if body["code"] == "version_mismatch":
        del body["order"]
    return body
