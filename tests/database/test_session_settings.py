"""Every session of posd has what it relies on, whatever the database, the role and the environment say."""

from __future__ import annotations

import os
from contextlib import closing

from psycopg2.extensions import parse_dsn

from posd.database import migrations
from posd.database.reconnecting import ReconnectingConnection, Row
from posd.database.session_settings import RELIED_ON
from posd.errors import StatementFailed
from tests.database_case import REACTOR, DatabaseCase, until
from tests.odd_settings import ENVIRONMENT, ODD, set_all

WANTED = {
    **RELIED_ON,
    "client_encoding": "UTF8",
    "session_replication_role": "origin",
}
HARD = "Zoë 🍕 \\' \\\\ \" '; SELECT 1 -- \\x41"
"""Characters that an encoding lacks, and those that end a literal where a backslash means something."""


class SettingsCase(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.database = f"DATABASE {parse_dsn(self.dsn)['dbname']}"

    async def link(self) -> ReconnectingConnection:
        return await self.up(
            ReconnectingConnection(
                REACTOR, self.dsn, name="posd test", statement_timeout=5.0, role=None
            )
        )

    def blocking(self, sql: str, *parameters: object) -> list[Row]:
        with closing(migrations.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    async def holds(self) -> None:
        """Both kinds of sessions have what they rely on, and write and read every value as it is."""
        link = await self.link()
        asked = "SELECT name, current_setting(name) FROM unnest(%s) AS name"
        names = list(WANTED)
        self.assertEqual(dict(await link.query(asked, (names,))), WANTED)
        self.assertEqual(dict(self.blocking(asked, names)), WANTED)
        told = "SELECT %s, %s::bytea, %s::integer[], '\\'"
        values = (HARD, b"\\x41'\x00\xff", [1, None])
        for rows in (await link.query(told, values), self.blocking(told, *values)):
            ((text, binary, array, backslash),) = rows
            self.assertEqual(
                (text, bytes(binary), array, backslash),
                (*values, "\\"),
            )
        await link.stopService()

    def test_every_setting_that_is_relied_on_is_tried(self) -> None:
        limits = {name for name in ODD if name.endswith("_timeout")} - WANTED.keys()
        self.assertEqual(len(limits), 3)
        self.assertEqual({*WANTED}, ODD.keys() - limits)
        self.assertEqual([name for name in WANTED if WANTED[name] == ODD[name]], [])

    async def test_the_database_has_other_values(self) -> None:
        set_all(self.admin.run, self.database)
        await self.holds()

    async def test_each_of_them_alone(self) -> None:
        for name in WANTED:
            with self.subTest(name):
                self.admin.run(f"ALTER {self.database} RESET ALL")
                self.admin.run(
                    f"ALTER {self.database} SET {name} ="
                    f" {ODD[name] if name == 'search_path' else repr(ODD[name])}"
                )
                self.assertEqual(
                    self.blocking("SELECT current_setting(%s)", name), [(WANTED[name],)]
                )

    async def test_the_environment_has_other_values(self) -> None:
        for name, value in ENVIRONMENT.items():
            self.addCleanup(os.environ.pop, name, None)
            os.environ[name] = value
        await self.holds()

    async def test_options_of_the_connection_string_stay_in_force(self) -> None:
        self.dsn = f"{self.dsn} options='-c standard_conforming_strings=off -c work_mem=3333kB'"
        await self.holds()
        self.assertEqual(self.blocking("SELECT current_setting('work_mem')"), [("3333kB",)])

    async def test_limits_of_the_role_are_none_for_posctl(self) -> None:
        set_all(self.admin.run, self.database)
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            self.assertEqual(self.blocking("SELECT current_setting(%s)", name), [("0",)])
        self.assertEqual(self.blocking("SELECT current_setting('lock_timeout')"), [("2s",)])

    async def test_a_role_without_triggers_that_may_not_change_it_is_refused(self) -> None:
        self.admin.run("CREATE ROLE posd_test_replica LOGIN")
        self.addCleanup(self.admin.run, "DROP ROLE posd_test_replica")
        self.admin.run("ALTER ROLE posd_test_replica SET session_replication_role = 'replica'")
        link = ReconnectingConnection(
            REACTOR,
            f"{self.dsn} user=posd_test_replica",
            name="posd test",
            statement_timeout=5.0,
            role=None,
        )
        link.startService()
        self.addCleanup(link.stopService)
        await until(lambda: link.trouble is not None, "there is trouble")
        self.assertIsInstance(link.refusal, StatementFailed)
        self.assertIn("session_replication_role", link.trouble or "")
        await link.stopService()
