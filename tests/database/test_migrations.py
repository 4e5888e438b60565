"""Tests of the files of `sql/`, of bootstrap, and of migrations."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import closing
from pathlib import Path

import psycopg2
from psycopg2.extensions import make_dsn
from twisted.trial.unittest import SynchronousTestCase

from posd.database import migrations, resources
from posd.database import provisioning as provision
from posd.database.migrations import Migration, version_mismatch
from posd.errors import SchemaError
from posd.testing.postgres import test_server
from tests.schema_case import Client, SchemaCase, at_once, eventually

WANTED = ("main/001_first.sql", "main/002_second.sql")


class FilesTests(SynchronousTestCase):
    """The files of `sql/`."""

    def test_migrations_are_ordered_by_their_numbers(self) -> None:
        for kind in ("main", "tenant"):
            files = [migration.file for migration in migrations.migrations(kind)]
            numbers = [file.removeprefix(f"{kind}/")[:3] for file in files]
            self.assertEqual(numbers, [f"{number:03}" for number in range(1, len(files) + 1)])
            self.assertEqual(tuple(files), migrations.expected_files()[kind])

    def test_the_checksum_is_the_sha256_of_the_text(self) -> None:
        text = "SELECT '…';\n"
        self.assertEqual(
            Migration("main/001_a.sql", text).checksum, hashlib.sha256(text.encode()).hexdigest()
        )

    def test_only_the_first_line_can_disable_the_transaction(self) -> None:
        self.assertFalse(Migration("f", "-- no-transaction\nSELECT 1;\n").transactional)
        self.assertTrue(Migration("f", "SELECT 1;\n-- no-transaction\n").transactional)


class MisfitTests(SynchronousTestCase):
    """The comparison of a schema's files with the files of this posd."""

    def test_a_schema_with_all_files_is_supported(self) -> None:
        self.assertIsNone(version_mismatch([*WANTED], WANTED))

    def test_the_record_of_the_hooks_is_ignored(self) -> None:
        self.assertIsNone(version_mismatch([*WANTED, "hooks.sql"], WANTED))

    def test_the_message_about_an_older_schema_names_the_first_missing_file(self) -> None:
        self.assertEqual(
            version_mismatch([WANTED[0]], WANTED),
            "the schema is older than this posd: it lacks main/002_second.sql; run `posctl migrate`",
        )

    def test_the_message_about_a_schema_from_before_the_release_names_a_file(self) -> None:
        for file in ("main/002_stream.sql", "tenant/005_reports.sql"):
            self.assertRegex(
                version_mismatch([WANTED[0], file], WANTED) or "",
                f"^the schema is from before the release of posd 0.1: it has {file}; .* a new database$",
            )

    def test_the_message_about_a_newer_schema_names_the_unknown_file(self) -> None:
        self.assertEqual(
            version_mismatch([WANTED[0], "main/003_third.sql"], WANTED),
            "the schema is newer than this posd: it has main/003_third.sql; upgrade posd",
        )


class BootstrapTests(SynchronousTestCase):
    """A cluster without roles and databases of posd."""

    def setUp(self) -> None:
        self.server = test_server().another()
        self.addCleanup(self.server.stop)

    def client(self, dbname: str = "postgres", user: str = "postgres") -> Client:
        connection = psycopg2.connect(self.server.dsn(dbname, user))
        connection.autocommit = True
        self.addCleanup(connection.close)
        return Client(connection)

    def test_bootstrap_creates_database_roles_and_main_schema_once(self) -> None:
        dsn = self.server.dsn("shops")
        self.assertTrue(migrations.bootstrap(dsn))
        self.assertFalse(migrations.bootstrap(dsn))
        roles = self.client("shops").rows(
            "SELECT rolname, rolcanlogin, rolcreaterole, rolsuper OR rolcreatedb OR rolbypassrls"
            "  FROM pg_roles WHERE rolname LIKE 'posd%' ORDER BY rolname"
        )
        self.assertEqual(
            roles,
            [
                ("posd", True, False, False),
                ("posd_hook", False, False, False),
                ("posd_note", False, False, False),
                ("posd_owner", False, False, False),
                ("posd_publisher", False, False, False),
                ("posd_reader", True, False, False),
            ],
        )
        owner = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'dinedesk_main'"
        self.assertEqual(self.client("shops").value(owner), "posd_owner")

    def test_two_concurrent_bootstraps_succeed(self) -> None:
        dsn = self.server.dsn("shops")
        made = at_once(*[lambda: migrations.bootstrap(dsn)] * 4)
        self.assertEqual(sorted(made), [False, False, False, True])

    def test_two_databases_of_a_cluster_are_bootstrapped_concurrently(self) -> None:
        names = ("north", "south", "east")
        made = at_once(
            *[lambda name=name: migrations.bootstrap(self.server.dsn(name)) for name in names]
        )
        self.assertEqual(made, [True, True, True])
        for name in names:
            with closing(migrations.connect(self.server.dsn(name))) as connection:
                self.assertEqual(provision.migrate(connection).updated, ("dinedesk_main",))

    def test_a_database_name_that_must_be_quoted(self) -> None:
        self.assertTrue(migrations.bootstrap(self.server.dsn('The "Shops"')))

    def test_a_user_without_rights_gets_the_required_role_in_the_error(self) -> None:
        self.client().run("CREATE ROLE somebody LOGIN")
        with self.assertRaisesRegex(SchemaError, "^bootstrap needs a superuser of the cluster: "):
            migrations.bootstrap(self.server.dsn("shops", "somebody"))

    def test_a_failed_login_raises_libpqs_error(self) -> None:
        with self.assertRaisesRegex(psycopg2.OperationalError, "nobody_here"):
            migrations.bootstrap(self.server.dsn("shops", "nobody_here"))

    def test_migrate_before_bootstrap_names_bootstrap(self) -> None:
        with (
            closing(migrations.connect(self.server.dsn())) as connection,
            self.assertRaisesRegex(SchemaError, "posd_owner: run `posctl bootstrap`$"),
        ):
            provision.migrate(connection)

    def test_a_main_schema_in_another_database_does_not_count(self) -> None:
        migrations.bootstrap(self.server.dsn("shops"))
        with (
            closing(migrations.connect(self.server.dsn())) as connection,
            self.assertRaisesRegex(SchemaError, "no schema dinedesk_main: run `posctl bootstrap`$"),
        ):
            provision.migrate(connection)


class MainSchemaTests(SynchronousTestCase):
    """A bootstrapped database, and a copy of `sql/` that a test may change."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        shutil.copytree(str(resources.sql()), self.folder)
        self.patch(resources, "sql", lambda: self.folder)
        self.patch(migrations, "_LOCK_SECONDS", 0.05)
        server = test_server()
        self.dsn = server.fresh_database()
        self.addCleanup(server.drop_database, self.dsn)
        migrations.bootstrap(self.dsn)
        self.connection = migrations.connect(self.dsn)
        self.addCleanup(self.connection.close)

    def other(self) -> Client:
        connection = psycopg2.connect(self.dsn)
        connection.autocommit = True
        self.addCleanup(connection.close)
        return Client(connection)

    def write(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)

    def applied(self) -> list[str]:
        return [
            file
            for (file,) in self.other().rows(
                "SELECT file FROM dinedesk_main.schema_versions ORDER BY file"
            )
        ]

    def test_a_second_migration_changes_nothing(self) -> None:
        self.assertEqual(
            provision.migrate(self.connection),
            provision.MigrationReport(("dinedesk_main",), (), {}),
        )
        self.assertEqual(
            provision.migrate(self.connection),
            provision.MigrationReport((), ("dinedesk_main",), {}),
        )
        self.assertEqual(self.applied(), [*migrations.expected_files()["main"]])
        migrations.check_main(self.connection)

    def test_a_failed_file_is_rolled_back_and_earlier_files_stay(self) -> None:
        self.write("main/090_good.sql", "CREATE TABLE dinedesk_main.good ();")
        self.write("main/091_bad.sql", "CREATE TABLE dinedesk_main.half (); SELECT 1 / 0;")
        with self.assertRaisesRegex(SchemaError, "^dinedesk_main: division by zero$"):
            provision.migrate(self.connection)
        self.assertEqual(self.applied()[-1], "main/090_good.sql")
        self.assertIsNone(self.other().value("SELECT to_regclass('dinedesk_main.half')::text"))

        self.write("main/091_bad.sql", "CREATE TABLE dinedesk_main.half ();")
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_main",))
        self.assertEqual(self.applied()[-1], "main/091_bad.sql")

    def test_a_file_that_was_changed_after_it_was_applied_is_an_error(self) -> None:
        provision.migrate(self.connection)
        changed = self.folder / "main/009_idempotency.sql"
        changed.write_text(changed.read_text() + "-- a better comment\n")
        with self.assertRaisesRegex(
            SchemaError, "^main/009_idempotency.sql was changed after it was applied"
        ):
            provision.migrate(self.connection)

    def test_a_schema_from_before_the_release_is_refused_by_name(self) -> None:
        provision.migrate(self.connection)
        self.write("main/002_stream.sql", "SELECT 1;")
        provision.migrate(self.connection)
        (self.folder / "main/002_stream.sql").unlink()
        for refused in (provision.migrate, migrations.check_main):
            with self.assertRaisesRegex(SchemaError, "before the release .* has main/002_stream"):
                refused(self.connection)

    def test_a_newer_schema_is_named_by_its_file(self) -> None:
        self.write("main/090_later.sql", "SELECT 1;")
        provision.migrate(self.connection)
        (self.folder / "main/090_later.sql").unlink()
        for refused in (provision.migrate, migrations.check_main):
            with self.assertRaisesRegex(SchemaError, "newer than this posd: it has main/090_later"):
                refused(self.connection)

    def test_an_older_schema_is_named_by_the_file_that_it_lacks(self) -> None:
        provision.migrate(self.connection)
        self.write("main/090_later.sql", "SELECT 1;")
        with self.assertRaisesRegex(SchemaError, "older than this posd: it lacks main/090_later"):
            migrations.check_main(self.connection)

    def test_one_of_two_concurrent_migrations_is_refused(self) -> None:
        with (
            closing(migrations.connect(self.dsn)) as other,
            migrations.administer(other),
            self.assertRaisesRegex(SchemaError, "another posctl is changing the schemas"),
        ):
            provision.migrate(self.connection)
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_main",))

    def test_a_waiting_migration_does_not_block_others_for_long(self) -> None:
        provision.migrate(self.connection)
        self.write("main/090_alter.sql", "ALTER TABLE dinedesk_main.tenants ADD motto text;")
        other = self.other()
        with closing(migrations.connect(self.dsn)) as hasty, other.transaction():
            other.run("SELECT FROM dinedesk_main.tenants")
            with self.assertRaisesRegex(SchemaError, "canceling statement due to lock timeout"):
                provision.migrate(hasty)
        self.assertEqual(provision.migrate(self.connection).updated, ("dinedesk_main",))

    def test_a_user_that_is_not_a_member_of_posd_owner_is_refused(self) -> None:
        with (
            closing(migrations.connect(str(make_dsn(self.dsn, user="posd")))) as connection,
            self.assertRaisesRegex(SchemaError, "needs a superuser or a member of posd_owner"),
        ):
            provision.migrate(connection)

    def test_an_index_can_be_built_concurrently(self) -> None:
        self.write(
            "main/090_index.sql",
            "-- no-transaction\n"
            "DROP INDEX CONCURRENTLY IF EXISTS dinedesk_main.tenants_by_name;\n"
            "CREATE INDEX CONCURRENTLY tenants_by_name ON dinedesk_main.tenants (name);\n",
        )
        provision.migrate(self.connection)
        self.assertEqual(self.applied()[-1], "main/090_index.sql")
        built = "'dinedesk_main.tenants_by_name'::regclass"
        valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = {built}"
        self.assertTrue(self.other().value(valid))

    def test_a_concurrent_index_waits_for_older_transactions_without_timeout(self) -> None:
        provision.migrate(self.connection)
        self.write(
            "main/090_index.sql",
            "-- no-transaction\n"
            "CREATE INDEX CONCURRENTLY tenants_by_name ON dinedesk_main.tenants (name);\n",
        )
        older, watcher = self.other(), self.other()
        older.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        older.run("UPDATE dinedesk_main.tenants SET name = name")

        def end_the_older_one() -> None:
            waited = (
                "SELECT wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '100 ms'"
                "  FROM pg_stat_activity WHERE pid = %s"
            )
            pid = self.connection.info.backend_pid
            eventually(lambda: bool(watcher.value(waited, pid)), "it waits beyond the lock timeout")
            older.run("COMMIT")

        with closing(self.connection):
            report, _ = at_once(lambda: provision.migrate(self.connection), end_the_older_one)
        assert report is not None
        self.assertEqual(report.updated, ("dinedesk_main",))

    def test_an_interrupted_file_is_not_recorded_and_runs_again(self) -> None:
        self.write(
            "main/090_odd.sql",
            "-- no-transaction\nCREATE TABLE IF NOT EXISTS dinedesk_main.odd ();\nSELECT 1 / 0;\n",
        )
        with self.assertRaisesRegex(SchemaError, "division by zero"):
            provision.migrate(self.connection)
        self.assertNotIn("main/090_odd.sql", self.applied())
        self.assertEqual(Client(self.connection).value("SHOW lock_timeout"), "50ms")
        self.write(
            "main/090_odd.sql",
            "-- no-transaction\nCREATE TABLE IF NOT EXISTS dinedesk_main.odd ();\nSELECT 1;\n",
        )
        provision.migrate(self.connection)
        self.assertEqual(self.applied()[-1], "main/090_odd.sql")


class AdministrationTests(SchemaCase):
    """The session settings of `posctl`."""

    def test_functions_in_public_are_not_in_the_search_path(self) -> None:
        with closing(migrations.connect(self.dsn)) as connection:
            client = Client(connection)
            self.assertEqual(client.value("SHOW search_path"), "pg_catalog, pg_temp")

    def test_a_lost_connection_is_reported_as_such(self) -> None:
        with (
            closing(migrations.connect(self.dsn)) as connection,
            self.assertRaises(psycopg2.OperationalError),
            migrations.administer(connection),
            migrations.transaction(connection) as cursor,
        ):
            self.admin.run("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
            cursor.execute("SELECT 1")
